"""How answers and files are written and read."""
