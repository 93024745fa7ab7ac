"""The suites of `experiments.benchmark`, one per file."""
