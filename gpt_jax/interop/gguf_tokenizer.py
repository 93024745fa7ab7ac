"""Converts the tokenizer in the keys of a GGUF file to a `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from gpt_jax.config.errors import ConfigError, UserError
from gpt_jax.config.foreign import quoted, shown
from gpt_jax.data.tokenizer import HuggingFaceTokenizer, Roles
from gpt_jax.interop.settings import checked_whole

GGML = "tokenizer.ggml."
TEMPLATE, WHOLE = "tokenizer.chat_template", "tokenizer.huggingface.json"
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
LONGEST = 512  # characters of a token of SentencePiece, whose merges take time with the square
# Keys that change no id: they are for filling in the middle or for other kinds of vocabularies.
HARMLESS = {"token_type_count", "add_sep_token", "remove_extra_whitespaces", "precompiled_charsmap"}

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


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
      ConfigError: gpt_jax does not read this kind of tokenizer, its splitting of text, or a key.
    """
    found = {key.removeprefix(GGML): value for key, value in values.items() if key.startswith(GGML)}
    if "model" not in found or found["model"] == "no_vocab":
        return None
    _refuse_unknown(values)
    _check_types(values)
    found = NUMBERS | SWITCHES | found
    if found["model"] not in ("gpt2", "llama") and WHOLE not in values:
        raise ConfigError(
            f"the file has a tokenizer of kind {quoted(found['model'])}, and gpt_jax reads only gpt2 and llama"
        )
    _check_tokens(found)
    try:
        definition = (
            values[WHOLE]
            if WHOLE in values
            else (_bytewise(found) if found["model"] == "gpt2" else _with_spaces(found)).to_str()
        )
    except UserError:
        raise
    except Exception as error:  # the library has no errors of its own
        raise ConfigError(f"the tokenizer of {name} cannot be made ({shown(str(error))}): download it again") from None
    tokens = found["tokens"]
    roles = {role: tokens[found[key]] for key, role in ROLES.items() if key in found}
    stops = {found[key] for key in STOPS if key in found}
    template = values[TEMPLATE] if TEMPLATE in values else None
    return HuggingFaceTokenizer(definition, name, Roles(roles, tuple(sorted(stops)), template))


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


# key → the type of its value, or of each element of a list
TYPES: dict[str, type] = {
    **dict.fromkeys((f"{GGML}model", f"{GGML}pre", TEMPLATE, WHOLE), str),
    **{GGML + key: bool for key in SWITCHES},
    **{GGML + key: list for key in ("tokens", "token_type", "merges", "scores")},
}
ELEMENTS: dict[str, type] = {"tokens": str, "token_type": int, "merges": str, "scores": float}


def _check_types(values: Mapping[str, Any]) -> None:
    """Raises ConfigError if a key of the tokenizer has a value of another type."""
    for key, wanted in TYPES.items():
        if key in values and type(values[key]) is not wanted:
            raise ConfigError(f'the file has "{key}": {shown(values[key])}, which must be of type {wanted.__name__}')


def _check_tokens(found: Mapping[str, Any]) -> None:
    """Raises ConfigError if the lists of a vocabulary do not fit each other, or an id is none of its tokens."""
    tokens = found["tokens"]
    if not tokens:
        raise ConfigError(f'the file has a tokenizer without "{GGML}tokens": convert the model again with llama.cpp')
    for key, wanted in ELEMENTS.items():
        each = found[key]
        if each is not None and any(type(one) is not wanted for one in each):
            raise ConfigError(f'the file has a "{GGML}{key}" with an element that is not of type {wanted.__name__}')
        if each is not None and key != "merges" and len(each) != len(tokens):
            raise ConfigError(f'the file has {len(each):,} elements in "{GGML}{key}" for {len(tokens):,} tokens')
    if len(set(tokens)) < len(tokens):
        raise ConfigError("the file has a token twice: convert the model again with llama.cpp")
    if found["model"] == "llama" and (found["scores"] is None or max(map(len, tokens)) > LONGEST):
        raise ConfigError(f"the file has a tokenizer without scores, or a token of more than {LONGEST} characters")
    for key in (*ROLES, *STOPS):
        if key in found:
            checked_whole(f"{GGML}{key}", found[key], 0, len(tokens) - 1)


def _bytewise(found: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Returns byte-level BPE, as in GPT-2."""
    split = "default" if found["pre"] is None else found["pre"]
    if split not in SPLITS:
        raise ConfigError(f"the file splits text as {quoted(split)}, and gpt_jax reads only {', '.join(SPLITS)}")
    vocab = {token: index for index, token in enumerate(found["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in found["merges"] or ()]
    if wrong := next((merge for merge in merges if len(merge) != 2), None):
        raise ConfigError(f"the file has the merge {shown(wrong)}, which is not of two tokens: download it again")
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
