"""`python -m merging`: the same as the command `gmerging`."""

from merging.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
