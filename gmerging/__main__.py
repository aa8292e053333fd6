"""The command `gmerging`, also `python -m gmerging`."""

from gmerging.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
