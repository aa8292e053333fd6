"""Many molecules: streams, files and jobs."""
