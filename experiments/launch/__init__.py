"""Launches commands on TPU VMs, SLURM, SkyPilot or this machine: `python -m experiments.launch --help`.

`description` says what is launched; a file per target turns it into commands; `supervise` runs the targets whose
retries are ours (`tpu`, `local`) by the decisions of `outcome`; `worker` is the program on each machine of a slice.
"""
