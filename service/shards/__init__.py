"""Screening of libraries that are kept as many files: shard by shard, on one machine or on many."""
