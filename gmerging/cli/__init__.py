"""The command line of `gmerging`."""
