"""Models that were trained elsewhere: reading, checking and merging them."""
