"""Samples text from a run: `python -m experiments.sample --help`."""

from __future__ import annotations

from collections.abc import Iterator

import jax
from absl import flags

from experiments import cli
from experiments.writing import first_messages, show, talk
from gpt_jax.data.tokenizer import Tokenizer
from gpt_jax.decoding.generate import stream
from gpt_jax.decoding.sampling import Sampler
from gpt_jax.runs.load import load_run

PAGE = """
Sample text from a trained model.

  python -m experiments.sample --workdir=DIR --prompt="def " --max_new_tokens=200 --temperature=0.8 --top_k=40

  --workdir=DIR          The run's folder (required); its newest good checkpoint is used.
  --prompt=TEXT          The text to continue; special tokens are recognised. Default: the beginning of a document.
  --chat                 For models trained on conversations: the prompt is a message, and the model's answer is
                         shown. Without a prompt, you converse with the model, one line per message, until Ctrl-D.
  --system=TEXT          With --chat: the system message, before the conversation.
  --max_new_tokens=N     The most tokens to add (default: until the context is full; 512 with --chat). A sample
                         ends earlier if the model ends the document, or its turn.
  --slide                Continue past the context. Each token then attends to the latest tokens only, and costs a
                         full forward pass.
  --num_samples=N        The number of samples, computed as one batch (default: 1).
  --seed=N               The random seed (default: 0); the same seed gives the same text.
  --mesh=AXES            Divide a large model over all devices, for example --mesh=tensor=-1
                         (default: one device has all of it).

  --temperature=X        Divides the logits: below 1 favours likely tokens, 0 always takes the likeliest (default: 1).
  --top_k=K              Sample from the K most likely tokens.
  --top_p=P              Sample from the smallest set of tokens whose probabilities add up to P.
  --min_p=P              Sample from tokens at least P times as probable as the most likely one.
  On a terminal, control characters in the text are shown as escapes; a file or a pipe gets the text as it is.
  --helpfull             List all flags, including those of the libraries.

Exit codes: 0 done, 1 failed, 2 wrong command line, 130 interrupted.
"""

flags.DEFINE_string("workdir", None, "The run's folder.")
flags.DEFINE_string("prompt", "", "The text to continue.")
flags.DEFINE_bool("chat", False, "Talk to a model that was trained on conversations.")
flags.DEFINE_string("system", None, "The system message.")
flags.DEFINE_integer("max_new_tokens", None, "The most tokens to add.")
flags.DEFINE_bool("slide", False, "Continue past the context.")
flags.DEFINE_integer("num_samples", 1, "The number of samples.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "The random seed.", lower_bound=0)
flags.DEFINE_float("temperature", Sampler.temperature, "Divides the logits; 0 takes the likeliest token.")
flags.DEFINE_integer("top_k", None, "Sample from the K most likely tokens.")
flags.DEFINE_float("top_p", None, "Sample from the smallest set of tokens whose probabilities add up to P.")
flags.DEFINE_float("min_p", None, "Sample from tokens at least P times as probable as the most likely one.")
flags.DEFINE_string("mesh", None, "The axes of the mesh, as in --config.mesh.")
cli.define_processes()
FLAGS = flags.FLAGS
ANSWER = 512  # most tokens of an answer, by default
EVERY = 4  # decoding steps between prints, each of which costs a round trip to the device


def main() -> int:
    workdir = cli.required("workdir", "the folder of the run to sample from")
    sampler = Sampler(FLAGS.temperature, FLAGS.top_k, FLAGS.top_p, FLAGS.min_p)
    model, params, tokenizer = load_run(workdir, mesh=FLAGS.mesh)
    if FLAGS.chat and not tokenizer.chats:
        raise cli.UsageError(
            "--chat needs a tokenizer with a chat template, which this run does not have: leave it out"
        )

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
    """The token ids of the prompt, with what the tokenizer puts before a document or a conversation."""
    if FLAGS.chat:
        return tokenizer.chat([*first_messages(FLAGS.system), {"role": "user", "content": FLAGS.prompt}])
    ids = tokenizer.encode(FLAGS.prompt, allowed_special="all")
    ids = ids if ids[: len(tokenizer.prefix)] == tokenizer.prefix else [*tokenizer.prefix, *ids]
    if ids:
        return ids
    if tokenizer.end_of_text is None:
        raise cli.UsageError(
            "--prompt is required, because this run's tokenizer has no end-of-text token: give a text to continue"
        )
    return [tokenizer.end_of_text]


if __name__ == "__main__":
    cli.run(main, PAGE)
