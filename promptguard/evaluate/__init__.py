"""Benchmarks: prompts in, rows out, reports from the rows. Users run it on their own filters."""
