"""Samples text from a run: `python -m experiments.sample --help`."""

from __future__ import annotations

from collections.abc import Iterator

import jax
from absl import flags

from experiments import cli
from experiments.writing import opening, show, talk
from gpt_jax.data.tokenizer import Tokenizer
from gpt_jax.decoding.generate import stream
from gpt_jax.decoding.sampling import Sampler
from gpt_jax.runs.load import load_run

PAGE = """
Let a trained model write.

  python -m experiments.sample --workdir=DIR --prompt="def " --max_new_tokens=200 --temperature=0.8 --top_k=40

  --workdir=DIR          The run's folder (required); its newest good checkpoint is used.
  --prompt=TEXT          What to continue; special tokens are recognised. Without it, the beginning of a document.
  --chat                 The prompt is what you say to a model that was trained on conversations, and what is shown is
                         its answer. Without a prompt, a conversation: a line each, until Ctrl-D.
  --system=TEXT          With --chat: what the model is told before the conversation.
  --max_new_tokens=N     Tokens to add at most (default: as many as the context has room for, 512 with --chat). A
                         sample ends earlier where the model ends the document, or its turn.
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
flags.DEFINE_bool("chat", False, "Talk to a model that was trained on conversations.")
flags.DEFINE_string("system", None, "What the model is told before the conversation.")
flags.DEFINE_integer("max_new_tokens", None, "Tokens to add at most.")
flags.DEFINE_bool("slide", False, "Go on past the context.")
flags.DEFINE_integer("num_samples", 1, "How many samples to draw.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "The same seed gives the same text.", lower_bound=0)
flags.DEFINE_float("temperature", Sampler.temperature, "0 takes the likeliest token.")
flags.DEFINE_integer("top_k", None, "Draw from the K likeliest tokens.")
flags.DEFINE_float("top_p", None, "Draw from the fewest tokens whose probabilities reach P together.")
flags.DEFINE_float("min_p", None, "Draw from the tokens at least P times as probable as the likeliest one.")
FLAGS = flags.FLAGS
ANSWER = 512  # tokens of an answer at most, unless --max_new_tokens says otherwise
EVERY = 4  # steps between two looks at what there is to print: each costs a round trip to the device


def main() -> int:
    workdir = cli.required("workdir", "the folder of the run to sample from")
    sampler = Sampler(FLAGS.temperature, FLAGS.top_k, FLAGS.top_p, FLAGS.min_p)
    model, params, tokenizer = load_run(workdir)
    if FLAGS.chat and not tokenizer.chats:
        raise cli.UsageError("--chat needs a tokenizer with a chat template, and this run's has none: leave it out")

    def sample(prompt: list[int], rows: int, turn: int = 0) -> Iterator[list[list[int]]]:
        room = max(model.config.context_length - len(prompt), 1)
        new = (min(room, ANSWER) if FLAGS.chat else room) if FLAGS.max_new_tokens is None else FLAGS.max_new_tokens
        options = {"max_new_tokens": new, "sampler": sampler, "stop": tokenizer.stop, "slide": FLAGS.slide}
        key = jax.random.fold_in(jax.random.key(FLAGS.seed), turn) if turn else jax.random.key(FLAGS.seed)
        return stream(model, params, [prompt] * rows, key=key, every=EVERY, **options)

    if FLAGS.chat and not FLAGS.prompt:
        talk(tokenizer, lambda ids, turn: (rows[0] for rows in sample(ids, 1, turn)), FLAGS.system)
        return 0
    show(
        sample(read_prompt(tokenizer), FLAGS.num_samples),
        tokenizer,
        ["" if FLAGS.chat else FLAGS.prompt] * FLAGS.num_samples,
    )
    return 0


def read_prompt(tokenizer: Tokenizer) -> list[int]:
    """The ids to continue."""
    if FLAGS.chat:
        return tokenizer.chat([*opening(FLAGS.system), {"role": "user", "content": FLAGS.prompt}])
    ids = tokenizer.encode(FLAGS.prompt, allowed_special="all")
    ids = ids if ids[: len(tokenizer.prefix)] == tokenizer.prefix else [*tokenizer.prefix, *ids]
    if ids:
        return ids
    if tokenizer.end_of_text is None:
        raise cli.UsageError("--prompt is required: this run's tokenizer has no end-of-text token to begin after")
    return [tokenizer.end_of_text]


if __name__ == "__main__":
    cli.run(main, PAGE)
