"""Suites judge checkpoints: a fixed set of tasks on a dataset, the same for every checkpoint, and their results."""
