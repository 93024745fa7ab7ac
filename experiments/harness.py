"""Runs EleutherAI's lm-evaluation-harness on a run: `python -m experiments.harness --help`."""

from __future__ import annotations

import sys

from experiments import cli

PAGE = """
Evaluate a run with EleutherAI's lm-evaluation-harness (pip install -e '.[eval]').

  python -m experiments.harness --tasks TASKS --model_args workdir=DIR [the other options of lm_eval]

  --tasks TASKS              Names of tasks, separated by commas; `lm_eval ls tasks` lists them (required).
  --model_args workdir=DIR   The run's folder (required). After commas: step=STEP (default: the newest good
                             checkpoint), mesh=AXES as in --config.mesh (default: all devices divide rows; two
                             axes need quotes inside, as in "workdir=DIR,mesh='data=2,tensor=2'", because lm_eval
                             splits at commas), prefix_token_id=ID (for tokenizers that lack a token that begins
                             a text), seed=SEED (of sampled generations).
  --batch_size N             Rows that go through the model together (default: lm_eval's, 1; 32 is faster).
  --include_path FOLDER      A folder of your own task files.
  --output_path FOLDER       Where results are written as JSON.

This is the command `lm_eval run --model gpt_jax`, with gpt_jax registered as a model first: the harness finds no models
in other packages by itself. All other options of `lm_eval run` work too. Most tasks download their data.

Exit codes: 0 done, 1 failed, 2 wrong command line.
"""


def main() -> None:
    if not sys.argv[1:] or {"-h", "--help"} & set(sys.argv[1:]):
        print(PAGE.strip())
        sys.exit(0 if sys.argv[1:] else 2)
    cli.quiet()
    try:
        from lm_eval.__main__ import cli_evaluate

        from gpt_jax.runs import harness  # noqa: F401  (registers the model)

        sys.argv[1:] = ["run", "--model", "gpt_jax", *sys.argv[1:]]  # a --model that follows replaces it
        cli_evaluate()
    except Exception as error:
        sentence = cli.explanation(error)
        if sentence is None:
            raise
        print(f"harness: {sentence}", file=sys.stderr)
        sys.exit(cli.FAILURE)


if __name__ == "__main__":
    main()
