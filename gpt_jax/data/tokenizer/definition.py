"""Checks a `tokenizer.json` before the `tokenizers` library opens it.

The library believes what a file says: it may panic, hang or take all memory. The vocabulary, the ids, the number of
steps (normalisers, splits, decoders) and how much longer they can make a text are checked here. Steps that can do more
than that, such as a regular expression that no published tokenizer has, are first tried out in an interpreter with
limits (0.2 s, once for each set of steps).
"""

import functools
import json
from collections.abc import Iterator
from typing import Any

from gpt_jax.config.errors import UserError
from gpt_jax.config.foreign import kind_of, parse_json
from gpt_jax.config.printable import printable
from gpt_jax.data import confined
from gpt_jax.data.tokenizer import trial
from gpt_jax.data.tokenizer.base import MOST_IDS
from gpt_jax.data.tokenizer.patterns import GPT2, LLAMA3, PATTERNS, QWEN2

SEQUENCES = ("normalizers", "pretokenizers", "processors", "decoders")
STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
# More than any published tokenizer has.
MOST_STEPS, MOST_DEPTH, MOST_GROWTH, MOST_PATTERN, MOST_AROUND, MOST_AFFIX = 64, 8, 256, 10_000, 1_000, 64
SECONDS, MEGABYTES = 3, 1024  # for a trial of the steps

# Steps whose time and memory grow with the text alone, up to the factor of `_growth`.
PLAIN = {
    *("Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer", "Strip", "Prepend"),
    *("ByteLevel", "Metaspace", "Whitespace", "WhitespaceSplit", "BertPreTokenizer", "Punctuation", "Digits", "Nmt"),
    *("CharDelimiterSplit", "Replace", "Split", "Fuse", "ByteFallback", "WordPiece", "BPEDecoder"),
    *("TemplateProcessing", "BertProcessing", "RobertaProcessing"),
}
KNOWN_PATTERNS = {*PATTERNS.values(), GPT2, LLAMA3, QWEN2}


def parse_definition(text: str, name: str) -> dict[str, Any]:
    """The checked content of a `tokenizer.json`; `name` is the file in messages.

    Raises:
      UserError: it is not JSON, has parts of the wrong kind, ids that are negative, repeated or beyond MOST_IDS, or
        steps that make a text too long, fail, or take too much time or memory.
    """
    values = parse_json(text, name)
    if not isinstance(values, dict):
        raise _damaged(name, f"it is {kind_of(values)}")
    values = {**dict.fromkeys(STEPS), "added_tokens": [], **values}
    if not isinstance(values.get("model"), dict):
        raise _damaged(name, "it has no model")
    _check_model(values["model"], name)
    check_added(values["added_tokens"], name)
    _check_steps(values, name)
    return values


def check_added(tokens: Any, name: str) -> None:
    """Checks a list of added tokens. Raises UserError as `parse_definition`."""
    if not isinstance(tokens, list):
        raise _damaged(name, f"its added_tokens are {kind_of(tokens)}")
    for token in tokens:
        if not (
            isinstance(token, dict)
            and isinstance(token.get("content"), str)
            and token["content"]
            and isinstance(token.get("special"), bool)
        ):
            raise _damaged(name, "an added token has no text, or does not say whether it is special")
    if len({token["content"] for token in tokens}) < len(tokens):
        raise _damaged(name, "an added token is there twice")
    _check_ids([token.get("id") for token in tokens], name)


def _check_model(model: dict[str, Any], name: str) -> None:
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        _check_ids(list(vocab.values()), name)
    elif not isinstance(vocab, list) or len(vocab) > MOST_IDS:
        raise _damaged(name, f"its vocabulary is {kind_of(vocab)}, or too large")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if isinstance(model.get(key), str) and len(model[key]) > MOST_AFFIX:
            raise _damaged(name, f"its {key} has {len(model[key])} characters")
    if not isinstance(model.get("unk_token"), str | None):
        raise _damaged(name, f"its unk_token is {kind_of(model['unk_token'])}")


def _check_ids(ids: list[Any], name: str) -> None:
    if not all(type(index) is int and 0 <= index < MOST_IDS for index in ids):
        bad = next(index for index in ids if type(index) is not int or not 0 <= index < MOST_IDS)
        raise _damaged(name, f"it has the token id {json.dumps(bad)[:40]}; ids are integers from 0 to {MOST_IDS - 1}")
    if len(set(ids)) < len(ids):
        raise _damaged(name, "two tokens have one id")


def _check_steps(values: dict[str, Any], name: str) -> None:
    parts = {part: values[part] for part in STEPS}
    for part, step in parts.items():
        if not isinstance(step, dict | None):
            raise _damaged(name, f"its {part} is {kind_of(step)}")
    steps = list(_steps([parts[part] for part in STEPS], name))
    if len(steps) > MOST_STEPS:
        raise _damaged(name, f"it has {len(steps)} steps, more than the {MOST_STEPS} that are read")
    patterns = [pattern for step in steps for pattern in _patterns(step)]
    if any(len(pattern) > MOST_PATTERN for pattern in patterns):
        raise _damaged(name, f"a pattern has more than {MOST_PATTERN:,} characters")
    for chain in (("normalizer", "pre_tokenizer", "post_processor"), ("decoder",)):
        growth = 1
        for step in (step for part in chain for step in _steps([parts[part]], name)):
            growth *= _growth(step, name)
            if growth > MOST_GROWTH:
                raise _damaged(name, f"its steps can make a text more than {MOST_GROWTH} times as long")
    if not all(step.get("type") in PLAIN for step in steps) or not all(map(_is_simple, patterns)):
        try:
            _try_out(json.dumps(parts), tuple(sorted({letter for pattern in patterns for letter in pattern}))[:100])
        except confined.Refused as error:
            raise _damaged(name, f"its steps fail on plain text: {error}") from None


@functools.lru_cache(maxsize=64)
def _try_out(parts: str, letters: tuple[str, ...]) -> None:
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    whole: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "model": model}
    # Patterns that take exponential time do so on runs of a character that they name.
    runs = [letter * 40 + "\0" for letter in (*letters, "a", "A", "0", " ", "\n", "é", "!")]
    texts = ["", *runs, "Here I am,\n\t don't 123 안 😉"]
    definition = json.dumps({**whole, **json.loads(parts)})
    confined.call(trial, "try_out", definition, texts, seconds=SECONDS, megabytes=MEGABYTES)


def _steps(part: Any, name: str, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yields the steps in a part of the file, without the sequences that hold them."""
    if depth > 2 * MOST_DEPTH:
        raise _damaged(name, f"its steps are nested more than {MOST_DEPTH} deep")
    if isinstance(part, list):
        for step in part:
            yield from _steps(step, name, depth + 1)
    elif isinstance(part, dict):
        if not isinstance(part.get("type"), str | None):
            raise _damaged(name, f"the type of a step is {kind_of(part['type'])}")
        if inner := [part[key] for key in SEQUENCES if key in part]:
            yield from _steps(inner, name, depth + 1)
        if part.get("type") != "Sequence":
            yield part


def _patterns(step: dict[str, Any]) -> Iterator[str]:
    """Yields the regular expressions of a step."""
    pattern = step.get("pattern")
    if isinstance(pattern, dict):
        texts = {key: text for key, text in pattern.items() if isinstance(text, str)}
        yield from (text for key, text in texts.items() if key != "String" or not text)


def _is_simple(pattern: str) -> bool:
    """Whether matching takes linear time: a published pattern, or one with at most one repetition and no group."""
    return pattern in KNOWN_PATTERNS or (pattern != "" and "(" not in pattern and sum(map(pattern.count, "*+{?")) <= 1)


def _growth(step: dict[str, Any], name: str) -> int:
    """By which factor at most a step makes a text longer."""
    match step.get("type"):
        case "Replace":
            content, pattern = step.get("content"), step.get("pattern")
            literal = pattern.get("String") if isinstance(pattern, dict) else None
            length = len(content) if isinstance(content, str) else 0
            return max(1, -(-length // len(literal))) if isinstance(literal, str) and literal else 1 + length
        case "Prepend":
            return 1 + len(str(step.get("prepend")))
        case "Precompiled":
            return 4
        case "ByteLevel":
            return 2
        case "TemplateProcessing":
            return _template_growth(step, name)
    return 1


def _template_growth(step: dict[str, Any], name: str) -> int:
    pieces, tokens = step.get("single"), step.get("special_tokens")
    if not isinstance(pieces, list) or not isinstance(tokens, dict):
        raise _damaged(name, "a TemplateProcessing lacks its parts")
    texts, around = 0, 0
    for piece in pieces:
        if not isinstance(piece, dict):
            raise _damaged(name, "a TemplateProcessing has a part of the wrong kind")
        texts += "Sequence" in piece
        special = piece.get("SpecialToken")
        token = tokens.get(str(special.get("id"))) if isinstance(special, dict) else None
        ids = token.get("ids") if isinstance(token, dict) else ()
        around += len(ids) if isinstance(ids, list) else 0
    if around > MOST_AROUND:
        raise _damaged(name, f"it puts {around} tokens around a text")
    return max(1, texts)


def _damaged(name: str, reason: str) -> UserError:
    reason = printable(reason)
    return UserError(f"{name} is not a valid tokenizer.json ({reason}): download it again")
