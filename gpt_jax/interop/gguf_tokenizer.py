"""Converts the tokenizer in the keys of a GGUF file to a `tokenizer.json`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from gpt_jax.config.errors import ConfigError
from gpt_jax.config.printable import printable
from gpt_jax.data.tokenizer import HuggingFaceTokenizer, Roles
from gpt_jax.data.tokenizer.base import MOST_IDS
from gpt_jax.data.tokenizer.patterns import GPT2, LLAMA3, QWEN2

GGML = "tokenizer.ggml."
TEMPLATE, WHOLE = "tokenizer.chat_template", "tokenizer.huggingface.json"
MOST_LETTERS = 1024  # of a SentencePiece token; each of its cuts into two is looked at
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # types of tokens that are not ordinary text
NUMBERS = {"model": None, "pre": None, "tokens": None, "token_type": None, "merges": None, "scores": None}
SWITCHES = {"add_bos_token": None, "add_eos_token": False, "add_space_prefix": None}
ROLES = {
    "bos_token_id": "bos_token",
    "eos_token_id": "eos_token",
    "unknown_token_id": "unk_token",
    "padding_token_id": "pad_token",
    "seperator_token_id": "sep_token",  # the format's own spelling
    "cls_token_id": "cls_token",
    "mask_token_id": "mask_token",
}
STOPS = ("eos_token_id", "eot_token_id", "eom_token_id")
# Keys that change no id: they are for filling in the middle or for other kinds of vocabularies.
HARMLESS = {"token_type_count", "add_sep_token", "remove_extra_whitespaces", "precompiled_charsmap"}


def _split(pattern: str) -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")]


def _digits() -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.Digits(individual_digits=True), *_split(GPT2)]


# `tokenizer.ggml.pre` → how text is cut into words before merging.
SPLITS: dict[str, Callable[[], list[pre_tokenizers.PreTokenizer]]] = {
    **dict.fromkeys(("default", "gpt-2", "phi-2", "olmo", "mpt", "jais", "gigachat"), lambda: _split(GPT2)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "exaone", "command-r"), _digits),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "dbrx", "smaug-bpe"), lambda: _split(LLAMA3)),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen"), lambda: _split(QWEN2)),
}
WHOLE_WORDS = ("llama3", "llama-v3", "llama-bpe")  # a word that is a token is not built up by merges
COMPOSED = ("qwen2", "stablelm2", "deepseek-r1-qwen", "olmo")  # letters and accents are composed to one character (NFC)


def read_tokenizer(values: Mapping[str, Any], name: str) -> HuggingFaceTokenizer | None:
    """Returns the tokenizer of a file with the keys `values`, or None if it has none; `name` is the file in messages.

    Raises:
      ConfigError: gpt_jax does not read this kind of tokenizer, its splitting of text, or a key; or keys are of the
        wrong kind, or do not fit together.
    """
    found = {key.removeprefix(GGML): value for key, value in values.items() if key.startswith(GGML)}
    if "model" not in found or found["model"] == "no_vocab":
        return None
    _refuse_unknown(values)
    found = NUMBERS | SWITCHES | found
    template = values[TEMPLATE] if TEMPLATE in values else None
    _check(found, values, template)
    if WHOLE in values:
        definition = values[WHOLE]
    elif found["model"] in BUILT:
        definition = _built(found)
    else:
        raise ConfigError(
            f"the file has a tokenizer of kind {found['model']!r}, and gpt_jax reads only {' and '.join(BUILT)}"
        )
    tokens = found["tokens"]
    roles = {role: tokens[found[key]] for key, role in ROLES.items() if key in found}
    stops = {found[key] for key in STOPS if key in found}
    return HuggingFaceTokenizer(definition, name, Roles(roles, tuple(sorted(stops)), template))


def _check(found: Mapping[str, Any], values: Mapping[str, Any], template: Any) -> None:
    """Raises ConfigError if a key is of the wrong kind, or refers to a token that is not there."""
    tokens = found["tokens"]
    if not _all(tokens, str) or not 0 < len(tokens) <= MOST_IDS or len(set(tokens)) < len(tokens):
        raise _damaged("tokens", f"a list of 1 to {MOST_IDS} texts that differ")
    if found["model"] == "llama" and max(map(len, tokens)) > MOST_LETTERS:
        raise _damaged("tokens", f"texts of up to {MOST_LETTERS} characters")
    for key, kinds, count in (
        ("token_type", (int,), len(tokens)),
        ("scores", (int, float), len(tokens)),
        ("merges", (str,), None),
    ):
        part = found[key]
        if part is not None and not (_all(part, *kinds) and count in (None, len(part))):
            raise _damaged(key, f"a list with an entry for each of the {len(tokens)} tokens" if count else "texts")
    if found["scores"] is None and found["model"] == "llama":
        raise _damaged("scores", "there")
    if not all(map(math.isfinite, found["scores"] or ())):
        raise _damaged("scores", "finite numbers")
    for key in {*ROLES, *STOPS} & found.keys():
        if type(found[key]) is not int or not 0 <= found[key] < len(tokens):
            raise _damaged(key, f"one of the ids 0 to {len(tokens) - 1}")
    for key in SWITCHES:
        if not isinstance(found[key], bool | None):
            raise _damaged(key, "true or false")
    for key, value in (
        ("pre", found["pre"]),
        ("model", found["model"]),
        (TEMPLATE, template),
        (WHOLE, values.get(WHOLE)),
    ):
        if not isinstance(value, str | None):
            raise _damaged(key.removeprefix(GGML), "a text")


def _all(values: Any, *kinds: type) -> bool:
    return isinstance(values, list | tuple) and all(type(value) in kinds for value in values)


def _damaged(key: str, wanted: str) -> ConfigError:
    return ConfigError(f'the file\'s tokenizer is damaged ("{key}" must be {wanted}): download it again')


def _built(found: Mapping[str, Any]) -> str:
    """The `tokenizer.json` of the keys of a file."""
    try:
        return BUILT[found["model"]](found).to_str()
    except ConfigError:
        raise
    except Exception as error:  # the library raises plain Exception
        reason = printable(" ".join(str(error).split())[:200])
        raise ConfigError(f"the file's tokenizer is damaged ({reason}): download it again") from None


def _refuse_unknown(values: Mapping[str, Any]) -> None:
    for key in values:
        if not key.startswith("tokenizer.") or key == WHOLE or key.startswith(TEMPLATE):
            continue
        short = key.removeprefix(GGML)
        known = NUMBERS.keys() | SWITCHES.keys() | ROLES.keys() | HARMLESS | {*STOPS}
        if short not in known and not (short.startswith(("fim_", "prefix_", "suffix_", "middle_"))):
            raise ConfigError(
                f'the file has an unknown key "{key}"; if it does not change the tokens, pass ignore=("{key}",)'
            )


def _bytewise(found: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Returns byte-level BPE, as in GPT-2."""
    split = "default" if found["pre"] is None else found["pre"]
    if split not in SPLITS:
        raise ConfigError(f'the file splits text as "{printable(split)}", and gpt_jax reads only {", ".join(SPLITS)}')
    vocab = {token: index for index, token in enumerate(found["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in found["merges"] or ()]
    if not all(len(merge) == 2 for merge in merges):
        raise _damaged("merges", "pairs of tokens with a space between them")
    library = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=split in WHOLE_WORDS))
    if split in COMPOSED:
        library.normalizer = normalizers.NFC()
    spaced = bool(found["add_space_prefix"])
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [*SPLITS[split](), pre_tokenizers.ByteLevel(add_prefix_space=spaced, use_regex=False)]
    )
    library.decoder = decoders.ByteLevel()
    return _with_tokens(library, found, False)


def _with_spaces(found: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Returns SentencePiece's BPE, as in Llama 2: spaces become ▁, and unknown characters bytes."""
    tokens, scores = found["tokens"], found["scores"]
    vocab = {token: index for index, token in enumerate(tokens)}
    unknown = tokens[found["unknown_token_id"]] if "unknown_token_id" in found else "<unk>"
    # SentencePiece merges the pair whose union has the best score first.
    pairs = [
        (-scores[index], -cut, (token[:cut], token[cut:]))
        for index, token in enumerate(tokens)
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    merges = [pair for _, _, pair in sorted(pairs)]
    library = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token=unknown, byte_fallback=True, fuse_unk=True))
    spaced = found["add_space_prefix"] is not False
    steps: list[Any] = [normalizers.Prepend("▁")] if spaced else []
    library.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if spaced else []
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return _with_tokens(library, found, True)


def _with_tokens(library: tokenizers.Tokenizer, found: Mapping[str, Any], begins: bool) -> tokenizers.Tokenizer:
    """Adds the special tokens, and the post-processor that puts tokens around a text.

    `begins` says whether a text starts with the token of `bos_token_id` if the file has no `add_bos_token`.
    """
    tokens = found["tokens"]
    kinds = found["token_type"] or ()
    for kinds_wanted, special in (((UNKNOWN, CONTROL), True), ((USER_DEFINED,), False)):
        library.add_tokens(
            [
                tokenizers.AddedToken(token, special=special, normalized=False)
                for token, kind in zip(tokens, kinds, strict=False)
                if kind in kinds_wanted
            ]
        )
    begins = found["add_bos_token"] if found["add_bos_token"] is not None else begins
    around = []
    for key, adds in (("bos_token_id", begins), ("eos_token_id", found["add_eos_token"])):
        around.append(tokens[found[key]] if adds and key in found else None)
    if any(around):
        first, last = ([token] if token else [] for token in around)
        library.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last],
            pair=[*first, "$A", *last, *first, "$B:1", *last],
            special_tokens=[(token, tokens.index(token)) for token in {*first, *last}],
        )
    return library


# `tokenizer.ggml.model` → what builds the tokenizer.
BUILT: dict[str, Callable[[Mapping[str, Any]], tokenizers.Tokenizer]] = {"gpt2": _bytewise, "llama": _with_spaces}
