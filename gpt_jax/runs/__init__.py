"""A run in a process: whatever has a disk, a clock, a screen or a signal, around the pure training step.

train.py        trains one run: `train`
together.py     trains several runs in one program: `train_together`
loop.py         the loop, and the observer that records, evaluates, saves and stops
session.py      opens a run: locks its folder, opens its data, builds its observer
folder.py       the run folder: file names, atomic writes, the lock; lease.py: the lock in an object store
record.py       what the folder says of the run: configuration, starts, hashes of the data
goodput.py      the shares of wall time in training and in everything else
spikes.py       steps that went wrong, with the documents of their batches; rewind.py: what going back leaves out
metrics.py      metrics.jsonl, TensorBoard, Weights & Biases
checkpoint.py   checkpoints; manager.py, saving.py: Orbax's manager, and its failures; preserve.py: which ones stay;
                fingerprint.py, sealed.py: what detects a damaged array or record
restart.py      what is lost of a run, and starting again; longer.py: going on for more steps
verify.py       checks a whole run folder
load.py         opens a checkpoint: `load_run`
init_from.py    what a run takes from the run it begins with, and what must agree with it
write.py        writes a model from elsewhere as a run: `write_run`
evaluate.py     evaluates a checkpoint: `evaluate_run`; suites.py: asks it questions with known answers
diagnostics.py  scores of heads while a run trains; questions.py: answers to questions while it does
display.py      the progress bar; console.py: what is printed before and after it; plot.py: the loss curve
recompute.py    computes a step twice and compares bits
watchdog.py     notices a hang, and writes the stacks of all threads
interrupt.py    signals; terminal.py: an output that vanishes; deadline.py: what is stuck after a signal
processes.py    joins the processes of a run; consensus.py: what they agree on; watch.py: the end of one of them
profile.py      the profiler; compilation.py: the compilation cache
"""
