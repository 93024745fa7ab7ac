"""A run in a process: its folder, checkpoints, records, display and signals around the pure training step."""
