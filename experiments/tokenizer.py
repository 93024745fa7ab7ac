"""Train, apply and inspect tokenizers.

  python -m experiments.tokenizer train --input='books/**/*.txt' --vocab_size=512 --output=DIR
  python -m experiments.tokenizer encode --tokenizer=DIR --text='Here I am'
  python -m experiments.tokenizer decode --tokenizer=DIR 72 101 114 101
  python -m experiments.tokenizer show --tokenizer=DIR --text='Here I am'

`COMMAND --help` lists the options of a command.
"""

import argparse
import glob
import pathlib
import sys
import warnings
from collections.abc import Iterator
from typing import NoReturn

from rich import console, progress

from experiments import cli
from gpt_jax.config import Bpe
from gpt_jax.config.errors import MissingFile, UserError
from gpt_jax.config.printable import printable
from gpt_jax.data import tokenizer as tokenizers
from gpt_jax.runs import terminal


def train(flags: argparse.Namespace) -> None:
    """Learns a vocabulary from UTF-8 text files, each of them one document, and saves it in a folder."""
    paths = [pathlib.Path(name) for name in sorted(glob.glob(flags.input, recursive=True))]
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise MissingFile(f"no file matches --input={flags.input}: check the pattern with ls")
    if pathlib.Path(flags.output).exists() and not flags.overwrite:
        raise UserError(f"{flags.output} exists already: choose another --output or add --overwrite")
    if flags.kind == "bpe" and flags.vocab_size is None:
        raise UserError(
            "--vocab_size is required for bpe: give the number of tokens to learn, for example --vocab_size=512"
        )
    with progress.Progress(console=console.Console(stderr=True)) as bar:
        texts, special = read(paths, bar), flags.special_tokens
        if flags.kind == "characters":
            learned: tokenizers.Tokenizer = tokenizers.CharacterTokenizer.train(texts, special or ())
        else:
            special = [tokenizers.END_OF_TEXT] if special is None else special
            learned = tokenizers.BpeTokenizer.train(texts, flags.vocab_size, flags.pattern, special)
    learned.save(flags.output)
    print(f"saved {learned.vocab_size} tokens in {flags.output}; to see them:")
    print(f"  python -m experiments.tokenizer show --tokenizer={flags.output} --text='Here I am'")


def read(paths: list[pathlib.Path], bar: progress.Progress) -> Iterator[str]:
    """Yields the text of the files in pieces, and shows progress."""
    task = bar.add_task("reading", total=sum(path.stat().st_size for path in paths))
    yield from tokenizers.read_chunks(paths, lambda size: bar.advance(task, size))
    bar.add_task("learning", total=None)


def encode(flags: argparse.Namespace) -> None:
    """Prints the token ids of --text, or else of the text on standard input."""
    text = read_stdin() if flags.text is None else flags.text
    allowed = flags.allowed_special
    print(*load(flags).encode(text, allowed if allowed in ("all", "none", "none_raise") else allowed.split(",")))


def read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 text: byte {error.start} is invalid") from None


def decode(flags: argparse.Namespace) -> None:
    """Writes the exact bytes of token ids, which are arguments, or else words on standard input."""
    words = flags.ids or sys.stdin.read().split()
    if wrong := [word for word in words if not word.removeprefix("-").isdecimal()]:
        raise UserError(f"{wrong[0]!r} is not a token id: give whole numbers separated by spaces")
    sys.stdout.buffer.write(load(flags).decode_bytes([int(word) for word in words]) + b"\n" * sys.stdout.isatty())


def show(flags: argparse.Namespace) -> None:
    """Describes a tokenizer, and shows how it splits --text into tokens."""
    console.Console(highlight=False).print(tokenizers.describe(load(flags), flags.text))


def load(flags: argparse.Namespace) -> tokenizers.Tokenizer:
    """The tokenizer that --tokenizer names."""
    named = flags.tokenizer == "bytes"
    return tokenizers.ByteTokenizer() if named else tokenizers.load_tokenizer(flags.tokenizer, flags.encoding)


class Parser(argparse.ArgumentParser):
    """Prints a usage error as one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The command line, with one subcommand per function."""
    top = Parser("python -m experiments.tokenizer", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for run in (train, encode, decode, show):
        command = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__, allow_abbrev=False)
        command.set_defaults(run=run)
        add = command.add_argument
        if run is train:
            add(
                "--input",
                metavar="GLOB",
                required=True,
                help="text files, as a quoted glob; ** matches any number of folders",
            )
            add("--output", metavar="DIR", required=True, help="the folder to save to")
            add("--overwrite", action="store_true", help="save even if DIR exists")
            add("--kind", choices=("bpe", "characters"), default="bpe", help="the kind of tokenizer (default: bpe)")
            add(
                "--vocab_size",
                metavar="V",
                type=int,
                help="the number of tokens of bpe, including 256 bytes and special tokens",
            )
            split = f"how bpe splits text into words before it merges (default: {Bpe.split})"
            add("--pattern", choices=sorted(tokenizers.PATTERNS), default=Bpe.split, help=split)
            add("--special_tokens", nargs="*", help="default: <|endoftext|> for bpe, none for characters")
            continue
        path = (
            "a folder written by train or with a tokenizer.json, such a file, a tiktoken rank file, or the word bytes"
        )
        add("--tokenizer", metavar="PATH", required=True, help=path)
        ranks = "the encoding of a tiktoken rank file, if its name does not say it"
        add("--encoding", choices=sorted(tokenizers.ENCODINGS), help=ranks)
        if run is decode:
            add("ids", metavar="ID", nargs="*", help="token ids")
            continue
        add("--text", help="the text")
        if run is encode:
            special = "special tokens to recognise: all, none, none_raise (default), or names separated by commas"
            add("--allowed_special", metavar="WHICH", default="none_raise", help=special)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns 0 if it succeeded, 1 after a user error, 128 + n after signal n."""
    flags = parser().parse_args(arguments)
    warnings.showwarning = lambda message, *_: print(f"warning: {printable(str(message))}", file=sys.stderr)
    try:
        flags.run(flags)
        terminal.flush()
    except KeyboardInterrupt as error:
        return cli.interrupted(error)[0]
    except Exception as error:
        if (sentence := cli.explanation(error)) is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        return cli.FAILURE
    return 0


if __name__ == "__main__":
    cli.begin()
    sys.exit(main())
