"""Benchmarks: prompts in, rows out, a summary from the rows. Users run it on their own filters."""
