"""Walks through a run's own model on one page: `python -m experiments.inspect --help`."""

from __future__ import annotations

from pathlib import Path

from absl import flags

from experiments import cli
from gpt_jax.analysis.walkthrough import walk_through
from gpt_jax.analysis.walkthrough_layer import Limits
from gpt_jax.config.disk import writing
from gpt_jax.config.errors import UserError
from gpt_jax.data.tokenizer import Tokenizer
from gpt_jax.pages.walkthrough import walkthrough_page
from gpt_jax.runs.load import load_run

PAGE = """
Look inside a model: one page with the real numbers of every stage, from the text to the next token.

  python -m experiments.inspect --workdir=DIR --prompt="def " --out=page.html

  --workdir=DIR          The run's folder (required); its newest good checkpoint is used. Given twice, two models
                         stand side by side on one page, which must read the same tokens.
  --prompt=TEXT          The text to read; special tokens are recognised. Default: the beginning of a document.
  --tokens=N             How many tokens continue it, each the likeliest (default: 16, or what the context has room
                         for). The text ends earlier where the model ends the document.
  --out=FILE.html        The page to write (required): one file, which needs no network.
  --helpfull             List all flags, including those of the libraries.

Of long texts the last 64 tokens are shown, of large models some layers, heads and elements; the page says which.

Exit codes: 0 done, 1 failed, 2 wrong command line, 130 interrupted.
"""

flags.DEFINE_multi_string("workdir", None, "The run's folder, or two.")
flags.DEFINE_string("prompt", "", "The text to read.")
flags.DEFINE_integer("tokens", None, "How many tokens continue the prompt.", lower_bound=0)
flags.DEFINE_string("out", None, "The page to write.")
FLAGS = flags.FLAGS


def main() -> int:
    """Writes the page and prints where it is."""
    workdirs = cli.required("workdir", "the folder of a run")
    out = cli.required("out", "the page to write, such as page.html")
    if len(workdirs) > 2:
        raise cli.UsageError(f"--workdir was given {len(workdirs)} times: a page shows one model, or two side by side")
    opened = [load_run(workdir) for workdir in workdirs]
    if len({tokenizer.content_hash() for _, _, tokenizer in opened}) > 1:
        raise UserError(f"the tokenizers of {' and '.join(workdirs)} differ: two arms must read the same tokens")
    ids, limits = ids_of(opened[0][2]), Limits(bytes=Limits.bytes // len(workdirs))
    short = [Path(workdir).name for workdir in workdirs]
    arms = [
        walk_through(*run, ids, name=name, new_tokens=FLAGS.tokens, limits=limits)
        for name, run in zip(short if len(set(short)) == len(short) else workdirs, opened, strict=True)
    ]
    title = f"A walk through {' and '.join(arm.name for arm in arms)}"
    page = walkthrough_page(title, FLAGS.prompt, arms, cli.command())
    with writing(out):
        Path(out).write_text(page, "utf-8")
    print(f"{out}  {len(page.encode()) / 1e6:.1f} MB")
    return 0


def ids_of(tokenizer: Tokenizer) -> list[int]:
    """The prompt's ids, after those that the tokenizer puts before a document."""
    ids = tokenizer.encode(FLAGS.prompt, allowed_special="all")
    ids = ids if ids[: len(tokenizer.prefix)] == tokenizer.prefix else [*tokenizer.prefix, *ids]
    if not ids and tokenizer.end_of_text is None:
        raise cli.UsageError("--prompt is required, because this run's tokenizer has no end-of-text token: give a text")
    return ids or [tokenizer.end_of_text]  # type: ignore[list-item]


if __name__ == "__main__":
    cli.run(main, PAGE)
