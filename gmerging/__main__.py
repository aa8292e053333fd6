"""The command `gmerging`, also `python -m gmerging`."""
# PYTHON_ARGCOMPLETE_OK

from gmerging.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
