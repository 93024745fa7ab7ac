"""Imports published models and exports runs: `python -m experiments.convert --help`."""

from __future__ import annotations

from pathlib import Path

from absl import flags
from rich.console import Console

from experiments import cli
from gpt_jax.data.tokenizer import load_tokenizer
from gpt_jax.data.tokenizer.huggingface import TOKENIZER_JSON
from gpt_jax.interop.hf import load_pretrained, save_pretrained
from gpt_jax.interop.origin import hashes
from gpt_jax.model.merge import merge_adapter
from gpt_jax.runs.load import load_run
from gpt_jax.runs.write import write_run

PAGE = """
Import a published model as a run, or export a run as a folder for Hugging Face's transformers.

  python -m experiments.convert --from=FILE_OR_FOLDER --workdir=DIR
  python -m experiments.convert --workdir=DIR --to=FOLDER

  --from=PATH            The model to import: a folder with config.json and safetensors, or a GGUF file.
  --workdir=DIR          The run's folder (required), written with --from and read with --to. sample, evaluate, and
                         train with --config.init_from=DIR accept it.
  --data=PATH            With --from: text for evaluation, a file, folder or glob (default: Python's library).
  --dtype=TYPE           With --from: float32, bfloat16 or float16, for parameters and arithmetic (default: float32).
  --tokenizer=PATH       With --from: another tokenizer, a tokenizer.json or a folder; required if the model has none.
  --ignore=NAME          With --from: a setting or tensor (or glob) that you know to change no result (repeatable).
  --to=FOLDER            The folder to write, with config.json, model.safetensors and the tokenizer.
  --family=NAME          With --to: the model_type to write (default: the first that supports the model).
  --helpfull             List all flags, including those of the libraries.

Nothing is dropped silently: a setting or tensor that gpt_jax does not know is an error that names it. Files
from the Hugging Face Hub are compared with its hashes; environment.json of the run keeps those of all files.

Exit codes: 0 done, 1 failed, 2 wrong command line.
"""

flags.DEFINE_string("from", None, "A folder or GGUF file to read.")
flags.DEFINE_string("workdir", None, "The run's folder.")
flags.DEFINE_string("data", None, "Text for evaluation.")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "The type of parameters and arithmetic.")
flags.DEFINE_string("tokenizer", None, "Another tokenizer.")
flags.DEFINE_multi_string("ignore", [], "A setting or tensor to ignore.")
flags.DEFINE_string("to", None, "The folder to write.")
flags.DEFINE_string("family", None, "The model_type to write.")
FLAGS = flags.FLAGS


def main() -> int:
    workdir, source = cli.required("workdir", "the folder of the run"), FLAGS["from"].value
    if (source is None) == (FLAGS.to is None):
        raise cli.UsageError("give either --from=PATH to import a model, or --to=FOLDER to export the run")
    if source is None:
        model, params, own = load_run(workdir)
        save_pretrained(FLAGS.to, *merge_adapter(model, params), own, FLAGS.family)
        Console().print(f"{FLAGS.to} can be opened with transformers and with gpt_jax.load_pretrained")
        return 0
    has_own = source.endswith(".gguf") or not Path(source).is_dir() or (Path(source) / TOKENIZER_JSON).exists()
    if FLAGS.tokenizer is None and not has_own:
        raise cli.UsageError(f"{source} has no {TOKENIZER_JSON}: give a tokenizer with --tokenizer=PATH")
    given = None if FLAGS.tokenizer is None else load_tokenizer(FLAGS.tokenizer)
    model, params, found = load_pretrained(source, FLAGS.dtype, FLAGS.ignore)
    origin = hashes(source)
    tokenizer = found if given is None else given
    if tokenizer is None:
        raise cli.UsageError(f"{source} has no tokenizer: give one with --tokenizer=PATH")
    place = str(Path(source).absolute())  # for a later check from anywhere
    write_run(workdir, model, params, tokenizer, text=FLAGS.data, source=place, source_hashes=origin)
    chat = " --chat" if tokenizer.chats else ""
    Console().print(f"python -m experiments.sample --workdir={workdir}{chat} --prompt=…", soft_wrap=True)
    return 0


if __name__ == "__main__":
    cli.run(main, PAGE)
