"""Plans a run before TPUs are rented: `python -m experiments.plan --help`."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
from absl import flags
from rich.console import Console

from experiments import cli
from experiments.planning import forecasts_of
from gpt_jax.analysis.forecast import to_json
from gpt_jax.analysis.plan_page import page
from gpt_jax.analysis.plan_text import show
from gpt_jax.config.disk import writing

PAGE = """
Plan a run before TPUs are rented: whether it fits, how fast it is and what it costs, by estimate.

  python -m experiments.plan --config=FILE.py --topology=KIND:SHAPE [KIND:SHAPE ...] [--config.KEY=VALUE ...]

  --config=FILE.py       The configuration (required), as for experiments.train. No text is read: where the
                         configuration leaves model.vocab_size to the text, give --config.model.vocab_size=N.
  --config.KEY=VALUE     Change one setting, for example
                           --config.mesh=data=2,fsdp=8           --config.train.accumulate=4
                           --config.model.remat=dots             --config.train.batch_size=256
  --topology=KIND:SHAPE  The slices (required): v5e:4x4, v6e:2x4, v4:2x2x2, v5p:4x4x4, tpu7x:2x2x1. Each program is
                         compiled for them on this machine, through libtpu: pip install 'gpt_jax[plan]'.
  --target=train|decode  The train step (the default), or generation: the prefill and the loop over new tokens.
  --rows=N, --prompt_tokens=N, --new_tokens=N
                         What is generated: by default 16 rows for each part of the mesh that divides rows, and half
                         of the context each for prompt and new tokens.
  --price=P              The price of a chip for an hour, for the cost of all tokens of the run.
  --search               Try meshes, micro-batches, remat and kernels: bounds choose --tries=N ways (default 12), which
                         are compiled in parallel, ranked, and printed with the command line of each.
  --json                 Print JSON in place of tables.
  --output=FILE.html     Also write a page, with pictures of memory and time.
  --helpfull             List all flags, including those of the libraries.

Nothing is measured. The compiler's own cycles are counted for each operation as often as it runs; what it cannot see,
such as attention kernels and the network, counts by its roofline, and is named.

Exit codes: 0 everything fits, 1 something does not fit, or planning failed, 2 wrong command line or configuration.
"""

flags.DEFINE_multi_string("topology", None, "The slices to plan for.")
flags.DEFINE_enum("target", "train", ["train", "decode"], "What to plan.")
flags.DEFINE_integer("rows", None, "Rows that are generated together.", lower_bound=1)
flags.DEFINE_integer("prompt_tokens", None, "Tokens of each prompt.", lower_bound=1)
flags.DEFINE_integer("new_tokens", None, "Tokens that follow each prompt.", lower_bound=1)
flags.DEFINE_float("price", None, "The price of a chip for an hour.", lower_bound=0.0)
flags.DEFINE_bool("search", False, "Search for the fastest way.")
flags.DEFINE_integer("tries", 12, "Ways to compile for --search.", lower_bound=1)
flags.DEFINE_bool("json", False, "Print JSON.")
flags.DEFINE_string("output", None, "The page to write.")
cli.define_config()
FLAGS = flags.FLAGS


def main() -> int:
    """Plans for each topology, prints the plans, and returns the exit code."""
    jax.config.update("jax_platforms", "cpu")  # a plan must not ask for an accelerator that something else uses
    topologies = cli.required("topology", "a TPU slice, such as v5e:4x4")
    config = cli.config_from_flags()
    forecasts = [forecast for topology in topologies for forecast in forecasts_of(config, topology, FLAGS)]
    if FLAGS.json:
        print(to_json(forecasts))
    else:
        show(Console(), forecasts)
    if FLAGS.output is not None:
        with writing(FLAGS.output):
            Path(FLAGS.output).write_text(page(forecasts, cli.command()))
        print(FLAGS.output, file=sys.stderr if FLAGS.json else sys.stdout)
    return 0 if all(forecast.fits for forecast in forecasts) else cli.FAILURE


if __name__ == "__main__":
    cli.run(main, PAGE, several="topology")
