"""Measurements: one question per file, rows under `results/`, the README written from the rows."""
