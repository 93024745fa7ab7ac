"""Samples text from a run: `python -m experiments.sample --help`."""

from __future__ import annotations

from collections.abc import Iterable

import jax
from absl import flags

from experiments import cli
from gpt_jax.data.tokenizer import Tokenizer
from gpt_jax.decoding.generate import stream
from gpt_jax.decoding.sampling import Sampler
from gpt_jax.run import load_run

PAGE = """
Let a trained model write.

  python -m experiments.sample --workdir=DIR --prompt="def " --max_new_tokens=200 --temperature=0.8 --top_k=40

  --workdir=DIR          The run's folder (required); its newest good checkpoint is used.
  --prompt=TEXT          What to continue; special tokens are recognised. Without it, the beginning of a document.
  --max_new_tokens=N     Tokens to add at most (default: as many as the context has room for). A sample ends earlier
                         where the model ends the document.
  --slide                Go on past the context: each token then sees the last tokens only, and takes a whole pass.
  --num_samples=N        How many samples to draw (default: 1); they are computed together.
  --seed=N               The same seed gives the same text (default: 0).

  --temperature=X        Below 1 makes likely tokens likelier, above 1 less so; 0 takes the likeliest one (default: 1).
  --top_k=K              Draw from the K likeliest tokens.
  --top_p=P              Draw from the fewest tokens whose probabilities reach P together.
  --min_p=P              Draw from the tokens at least P times as probable as the likeliest one.
  --helpfull             All flags, those of the libraries too.

Exit codes: 0 done, 1 failed, 2 wrong command line, 130 interrupted.
"""

flags.DEFINE_string("workdir", None, "The run's folder.")
flags.DEFINE_string("prompt", "", "What to continue.")
flags.DEFINE_integer("max_new_tokens", None, "Tokens to add at most.")
flags.DEFINE_bool("slide", False, "Go on past the context.")
flags.DEFINE_integer("num_samples", 1, "How many samples to draw.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "The same seed gives the same text.", lower_bound=0)
flags.DEFINE_float("temperature", Sampler.temperature, "0 takes the likeliest token.")
flags.DEFINE_integer("top_k", None, "Draw from the K likeliest tokens.")
flags.DEFINE_float("top_p", None, "Draw from the fewest tokens whose probabilities reach P together.")
flags.DEFINE_float("min_p", None, "Draw from the tokens at least P times as probable as the likeliest one.")
FLAGS = flags.FLAGS
EVERY = 4  # steps between two looks at what there is to print: each costs a round trip to the device


def main() -> int:
    workdir = cli.required("workdir", "the folder of the run to sample from")
    sampler = Sampler(FLAGS.temperature, FLAGS.top_k, FLAGS.top_p, FLAGS.min_p)
    model, params, tokenizer = load_run(workdir)
    stop = () if tokenizer.end_of_text is None else (tokenizer.end_of_text,)
    if not FLAGS.prompt and not stop:
        raise cli.UsageError("--prompt is required: this run's tokenizer has no end-of-text token to begin after")
    prompt = tokenizer.encode(FLAGS.prompt, allowed_special="all") if FLAGS.prompt else list(stop)
    room = max(model.config.context_length - len(prompt), 1)
    new, key = room if FLAGS.max_new_tokens is None else FLAGS.max_new_tokens, jax.random.key(FLAGS.seed)
    options = {"max_new_tokens": new, "sampler": sampler, "stop": stop, "slide": FLAGS.slide}
    show(stream(model, params, [prompt] * FLAGS.num_samples, key=key, every=EVERY, **options), tokenizer)
    return 0


def show(pieces: Iterable[list[list[int]]], tokenizer: Tokenizer) -> None:
    """Prints the samples one below the other: the first while it is written, then the others."""
    decoders, waiting = [tokenizer.stream() for _ in range(FLAGS.num_samples)], [FLAGS.prompt] * FLAGS.num_samples
    for piece in pieces:
        for i, ids in enumerate(piece):
            waiting[i] += decoders[i].push([token for token in ids if token != tokenizer.end_of_text])
        print(waiting[0], end="", flush=True)
        waiting[0] = ""
    for i, decoder in enumerate(decoders):
        rule = f"{'─' * 24} {i + 1}\n" if i else ""
        print(f"{rule}{waiting[i]}{decoder.flush()}")


if __name__ == "__main__":
    cli.run(main, PAGE)
