"""A run in a process: whatever has a disk, a clock, a screen or a signal, around the pure training step.

train.py        trains one run: `train`
together.py     trains several runs in one program: `train_together`
loop.py         the loop, and the observer that records, evaluates, saves and stops
session.py      opens a run: locks its folder, opens its data, builds its observer
folder.py       the run folder: file names, atomic writes, the lock
record.py       what the folder says of the run: configuration, starts, hashes of the data
goodput.py      the shares of wall time in training and in everything else
spikes.py       steps that went wrong, with the documents of their batches
metrics.py      metrics.jsonl, TensorBoard, Weights & Biases
checkpoint.py   checkpoints, and the fingerprints that detect a damaged one
load.py         opens a checkpoint: `load_run`
init_from.py    what a run takes from the run it begins with, and what must agree with it
write.py        writes a model from elsewhere as a run: `write_run`
evaluate.py     evaluates a checkpoint: `evaluate_run`
display.py      the progress bar; console.py: what is printed before and after it; plot.py: the loss curve
recompute.py    computes a step twice and compares bits
watchdog.py     notices a hang, and writes the stacks of all threads
interrupt.py    SIGINT and SIGTERM; profile.py: the profiler; compilation.py: the compilation cache
"""
