"""The paper's experiments and ours, one question per file: `python -m benchmarks.tasks.<name> DATA`."""
