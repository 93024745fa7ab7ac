"""Measures speed: `python -m experiments.benchmark --help`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import flags

from experiments import cli
from experiments.benchmarks import attention, compilation, data, decode, loop, pretrained, seeds, step

SUITES: dict[str, Callable[..., Any]] = {
    "step": step.run,
    "decode": decode.run,
    "pretrained": pretrained.run,
    "data": data.run,
    "compile": compilation.run,
    "loop": loop.run,
    "attention": attention.run,
    "seeds": seeds.run,
}

PAGE = """
Measure speed on this machine; the result is one JSON object on standard output.

  python -m experiments.benchmark --suite=step|decode|pretrained|data|compile|loop|attention|seeds

  --suite=step      The bare training step of a plain GPT-2 at two sizes, against a straightforward Linen model of
                    the same sizes and, if PyTorch is installed, against that, by turns in one process.
  --suite=decode    Tokens per second of generate, one row at a time and sixteen, at two sizes.
  --suite=pretrained Tokens per second of --model=PATH, a published model, in float32 and bfloat16, by turns with
                    transformers where it is installed; and the memory that loading it takes.
  --suite=data      Batches per second, and a tokenizer's training and encoding, on --text=FILE.
  --suite=compile   Seconds from a configuration to the end of its first step, without a compilation cache, for 12 and
                    48 scanned layers.
  --suite=loop      What the training loop costs beside its steps.
  --suite=attention Attention alone by blocks: its memory and time against the einsum's, and what a window saves.
  --suite=seeds     Whole processes: four seeds of one arm as a study runs them, and as four commands.
  --rounds=N        Turns of each arm (default 10); best and median are reported. Use more on a busy machine.
  --text=FILE       The text for --suite=data.
  --model=PATH      The folder or GGUF file for --suite=pretrained.
  --output=FILE     Write the JSON there too.
"""

flags.DEFINE_enum("suite", None, list(SUITES), "What to measure.")
flags.DEFINE_integer("rounds", 10, "Turns of each arm.", lower_bound=1)
flags.DEFINE_string("text", None, "The text for --suite=data.")
flags.DEFINE_string("model", None, "The folder or GGUF file for --suite=pretrained.")
flags.DEFINE_string("output", None, "A file for the JSON.")
FLAGS = flags.FLAGS


def main() -> None:
    suite = cli.required("suite", "one of " + ", ".join(SUITES))
    needs = {"data": ("text", "a text file to measure with"), "pretrained": ("model", "a folder or GGUF file")}
    options = {needs[suite][0]: cli.required(*needs[suite])} if suite in needs else {}
    results = SUITES[suite](rounds=FLAGS.rounds, **options)
    result = {
        "suite": suite,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "processors": os.cpu_count(),
        "results": results,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if FLAGS.output is not None:
        Path(FLAGS.output).write_text(text + "\n")


if __name__ == "__main__":
    cli.run(main, PAGE)
