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
from experiments.benchmarks import (
    attention,
    compilation,
    data,
    decode,
    looking,
    loop,
    opening,
    planned,
    pretrained,
    saving,
    seeds,
    step,
)
from gpt_jax.config.disk import writing

SUITES: dict[str, Callable[..., Any]] = {
    "step": step.run,
    "decode": decode.run,
    "pretrained": pretrained.run,
    "data": data.run,
    "compile": compilation.run,
    "loop": loop.run,
    "look": looking.run,
    "saving": saving.run,
    "opening": opening.run,
    "attention": attention.run,
    "seeds": seeds.run,
    "plan": planned.run,
}

PAGE = """
Measure speed on this machine, and print the results as one JSON object.

  python -m experiments.benchmark --suite=NAME [--rounds=N]

  --suite=step        The training step of a plain GPT-2 at two sizes, against a straightforward Linen model and, if
                      PyTorch is installed, a PyTorch model of the same sizes, in alternation within one process.
  --suite=decode      Tokens per second of generate, for one row and for sixteen, at two sizes.
  --suite=pretrained  Tokens per second of --model=PATH, a published model, in float32 and bfloat16, in alternation
                      with transformers if it is installed; and the peak memory of loading it.
  --suite=data        Batches per second, and the speed of training and applying a tokenizer, on --text=FILE.
  --suite=compile     Seconds from a configuration to the end of the first step, without a compilation cache, for 12
                      and 48 scanned layers.
  --suite=loop        The overhead of the training loop, compared to its steps alone, and of what watches it.
  --suite=look        Looking inside a model of SmolLM2-135M's size, or --model=PATH: the forward pass that captures one
                      name, against the plain one; the time and size of a page; and how fast one answers in Chromium.
  --suite=saving      How long a checkpoint holds up the loop, against a step, at 10.7 million parameters.
  --suite=opening     What their hashes add to opening a checkpoint and a cached corpus.
  --suite=attention   Chunked attention alone: memory and time against the einsum's, and the gain from a window.
  --suite=seeds       Whole processes: four seeds of one arm as a study, and as four commands.
  --suite=plan        The estimated step of GPT-2 124M on v5e:4x4, against a straightforward Linen model; needs libtpu.
  --rounds=N          Rounds of measurements (default 10); best and median are reported. Use more on a busy machine.
  --text=FILE         The text for --suite=data.
  --model=PATH        The folder or GGUF file for --suite=pretrained and --suite=look.
  --output=FILE       Also write the JSON to this file.
"""

flags.DEFINE_enum("suite", None, list(SUITES), "The suite to run.")
flags.DEFINE_integer("rounds", 10, "Rounds of measurements.", lower_bound=1)
flags.DEFINE_string("text", None, "The text for --suite=data.")
flags.DEFINE_string("model", None, "The folder or GGUF file for --suite=pretrained and look.")
flags.DEFINE_string("output", None, "The file to write the JSON to.")
FLAGS = flags.FLAGS


def main() -> None:
    """Runs one suite and prints its results, with the device that they were measured on."""
    suite = cli.required("suite", "one of " + ", ".join(SUITES))
    needs = {"data": ("text", "a text file to measure with"), "pretrained": ("model", "a folder or GGUF file")}
    options = {needs[suite][0]: cli.required(*needs[suite])} if suite in needs else {}
    if suite == "look":
        options["model"] = FLAGS.model
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
        with writing(FLAGS.output):
            Path(FLAGS.output).write_text(text + "\n")


if __name__ == "__main__":
    cli.run(main, PAGE)
