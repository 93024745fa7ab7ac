"""Walks through a run's own model on one page: `python -m experiments.inspect --help`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from absl import flags

from experiments import cli
from experiments.inspecting import HOST, open_arms, page_of, server_of
from gpt_jax.config.disk import writing

PAGE = """
Look inside a model: one page with the real numbers of every stage, from the text to the next token.

  python -m experiments.inspect --workdir=DIR --prompt="def " --out=page.html
  python -m experiments.inspect --workdir=DIR --serve

  --workdir=DIR          The run's folder (required); its newest good checkpoint is used. Given twice, two models
                         stand side by side on one page, which must read the same tokens.
  --prompt=TEXT          The text to read; special tokens are recognised. Default: the beginning of a document.
  --tokens=N             How many tokens continue it, each the likeliest (default: 16, or what the context has room
                         for). The text ends earlier where the model ends the document.
  --out=FILE.html        The page to write: one file, which needs no network.
  --serve                Instead, serve the page on this machine, to no other one; it asks for a prompt, and is made
                         anew for each. Ctrl-C ends it.
  --port=N               The port of --serve (default: 8000).
  --helpfull             List all flags, including those of the libraries.

Of long texts the last 64 tokens are shown, of large models some layers, heads and elements; the page says which.

Exit codes: 0 done, 1 failed, 2 wrong command line, 130 interrupted.
"""

flags.DEFINE_multi_string("workdir", None, "The run's folder, or two.")
flags.DEFINE_string("prompt", "", "The text to read.")
flags.DEFINE_integer("tokens", None, "How many tokens continue the prompt.", lower_bound=0)
flags.DEFINE_string("out", None, "The page to write.")
flags.DEFINE_bool("serve", False, "Serve the page on this machine.")
flags.DEFINE_integer("port", 8000, "The port of --serve.", lower_bound=1, upper_bound=65535)
FLAGS = flags.FLAGS


def main() -> int:
    """Writes the page and prints where it is, or serves it."""
    workdirs = cli.required("workdir", "the folder of a run")
    if len(workdirs) > 2:
        raise cli.UsageError(f"--workdir was given {len(workdirs)} times: a page shows one model, or two side by side")
    if FLAGS.serve == (FLAGS.out is not None):
        raise cli.UsageError("give either --out, the page to write, such as --out=page.html, or --serve")
    arms = open_arms(workdirs)
    if FLAGS.serve:
        page = partial(page_of, arms, tokens=FLAGS.tokens, asks=True)
        with server_of(page, FLAGS.prompt, FLAGS.port) as server:
            print(f"http://{HOST}:{server.server_port}/", flush=True)
            server.serve_forever()
        return 0
    text = page_of(arms, FLAGS.prompt, FLAGS.tokens)
    with writing(FLAGS.out):
        Path(FLAGS.out).write_text(text, "utf-8")
    print(f"{FLAGS.out}  {len(text.encode()) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    cli.run(main, PAGE)
