"""What networks read: molecules, graphs of features and structures, and batches of them."""
