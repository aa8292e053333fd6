"""The HTTP interface: each function checks, calls, and answers."""
