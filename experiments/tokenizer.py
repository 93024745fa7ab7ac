"""Trains, applies and shows tokenizers.

  python -m experiments.tokenizer train --input='books/**/*.txt' --vocab_size=512 --output=DIR
  python -m experiments.tokenizer encode --tokenizer=DIR --text='Here I am'
  python -m experiments.tokenizer decode --tokenizer=DIR 72 101 114 101
  python -m experiments.tokenizer show --tokenizer=DIR --text='Here I am'

`COMMAND --help` tells what a command takes.
"""

import argparse
import glob
import pathlib
import sys
import warnings
from collections.abc import Iterator
from typing import NoReturn

from rich import console, progress

from gpt_jax.config import Bpe
from gpt_jax.config.errors import MissingFile, UserError
from gpt_jax.data import tokenizer as tokenizers


def train(flags: argparse.Namespace) -> None:
    """Learns a vocabulary from UTF-8 text files, one document a file, and saves it in a folder."""
    paths = [pathlib.Path(name) for name in sorted(glob.glob(flags.input, recursive=True))]
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise MissingFile(f"No file matches --input={flags.input}; check the pattern with ls.")
    if pathlib.Path(flags.output).exists() and not flags.overwrite:
        raise FileExistsError(f"{flags.output} exists already; choose another --output or add --overwrite.")
    if flags.kind == "bpe" and flags.vocab_size is None:
        raise UserError("Say how many tokens to learn, for example --vocab_size=512.")
    with progress.Progress(console=console.Console(stderr=True)) as bar:
        texts, special = read(paths, bar), flags.special_tokens
        if flags.kind == "characters":
            learned: tokenizers.Tokenizer = tokenizers.CharacterTokenizer.train(texts, special or ())
        else:
            special = [tokenizers.END_OF_TEXT] if special is None else special
            learned = tokenizers.BpeTokenizer.train(texts, flags.vocab_size, flags.pattern, special)
    learned.save(flags.output)
    print(f"Saved {learned.vocab_size} tokens in {flags.output}. To see them:")
    print(f"  python -m experiments.tokenizer show --tokenizer={flags.output} --text='Here I am'")


def read(paths: list[pathlib.Path], bar: progress.Progress) -> Iterator[str]:
    task = bar.add_task("reading", total=sum(path.stat().st_size for path in paths))
    yield from tokenizers.read_chunks(paths, lambda size: bar.advance(task, size))
    bar.add_task("learning", total=None)


def encode(flags: argparse.Namespace) -> None:
    """Prints the token ids of a text, that of --text or else of standard input."""
    text = sys.stdin.buffer.read().decode("utf-8") if flags.text is None else flags.text
    allowed = flags.allowed_special
    print(*load(flags).encode(text, allowed if allowed in ("all", "none", "none_raise") else allowed.split(",")))


def decode(flags: argparse.Namespace) -> None:
    """Writes the exact bytes that token ids stand for; the ids are arguments or else words of standard input."""
    words = flags.ids or sys.stdin.read().split()
    if wrong := [word for word in words if not word.removeprefix("-").isdecimal()]:
        raise UserError(f"{wrong[0]!r} is no token id; give whole numbers with spaces between them.")
    sys.stdout.buffer.write(load(flags).decode_bytes([int(word) for word in words]) + b"\n" * sys.stdout.isatty())


def show(flags: argparse.Namespace) -> None:
    """Shows what a tokenizer is and how it cuts a text."""
    console.Console(highlight=False).print(tokenizers.describe(load(flags), flags.text))


def load(flags: argparse.Namespace) -> tokenizers.Tokenizer:
    named = flags.tokenizer == "bytes"
    return tokenizers.ByteTokenizer() if named else tokenizers.load_tokenizer(flags.tokenizer, flags.encoding)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    top = Parser("python -m experiments.tokenizer", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for run in (train, encode, decode, show):
        command = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__, allow_abbrev=False)
        command.set_defaults(run=run)
        add = command.add_argument
        if run is train:
            add("--input", metavar="GLOB", required=True, help="text files, as a quoted pattern; ** is any folders")
            add("--output", metavar="DIR", required=True, help="folder to save in")
            add("--overwrite", action="store_true", help="save even where DIR exists")
            add("--kind", choices=("bpe", "characters"), default="bpe", help="what the tokens are (default: bpe)")
            add("--vocab_size", metavar="V", type=int, help="tokens of bpe, the 256 bytes and special ones included")
            split = f"how bpe cuts text into words before it merges (default: {Bpe.split})"
            add("--pattern", choices=sorted(tokenizers.PATTERNS), default=Bpe.split, help=split)
            add("--special_tokens", nargs="*", help="default: <|endoftext|> for bpe, none for characters")
            continue
        path = "folder that train wrote or with a tokenizer.json, that file, a tiktoken rank file, or the word bytes"
        add("--tokenizer", metavar="PATH", required=True, help=path)
        ranks = "what a rank file holds, where its name does not say so"
        add("--encoding", choices=sorted(tokenizers.ENCODINGS), help=ranks)
        if run is decode:
            add("ids", metavar="ID", nargs="*", help="token ids")
            continue
        add("--text", help="the text")
        if run is encode:
            special = "special tokens to recognise: all, none, none_raise (default) or names with commas between"
            add("--allowed_special", metavar="WHICH", default="none_raise", help=special)
    return top


def main(arguments: list[str] | None = None) -> int:
    flags = parser().parse_args(arguments)
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        flags.run(flags)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; nothing was saved.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
