"""Reading and writing tokenizers of published models: `tokenizer.json` and the files beside it."""

import json
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import tokenizers
from etils import epath
from tokenizers import decoders, models, pre_tokenizers

from gpt_jax.config.disk import writing
from gpt_jax.config.errors import UserError
from gpt_jax.config.foreign import decoded, parse_json, well_formed
from gpt_jax.data.tokenizer.base import read_file
from gpt_jax.data.tokenizer.bpe import BpeTokenizer
from gpt_jax.data.tokenizer.byte import ByteTokenizer
from gpt_jax.data.tokenizer.character import CharacterTokenizer
from gpt_jax.data.tokenizer.definition import check_added
from gpt_jax.data.tokenizer.huggingface import TOKENIZER_JSON, HuggingFaceTokenizer, Roles, check_roles
from gpt_jax.data.tokenizer.interface import Tokenizer

TOKENIZER_CONFIG, CHAT_TEMPLATE, GENERATION = "tokenizer_config.json", "chat_template.jinja", "generation_config.json"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Files with vocabularies in other formats, which `transformers` can convert to a tokenizer.json.
OTHER_FORMS = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "sentencepiece.bpe.model")


def read_pretrained(folder: epath.PathLike, ignore: Collection[str] = ()) -> HuggingFaceTokenizer | None:
    """Reads the tokenizer of a Hugging Face folder, with its chat template and stop tokens.

    Returns None if the folder has no `tokenizer.json`, and warns if it has a vocabulary in another format. `ignore`
    lists keys of the settings to treat as absent.

    Raises:
      UserError: a file is damaged.
    """
    folder = epath.Path(folder)
    if not (folder / TOKENIZER_JSON).exists():
        if others := [name for name in OTHER_FORMS if (folder / name).exists()]:
            warnings.warn(
                f"{folder} has {others[0]} and no {TOKENIZER_JSON}, so it is read without a tokenizer: to convert it, "
                "load it with transformers' AutoTokenizer and call save_pretrained",
                stacklevel=2,
            )
        return None
    with well_formed(f"the tokenizer in {folder}"):
        definition, roles = _read(folder, ignore)
    return HuggingFaceTokenizer(json.dumps(definition), str(folder / TOKENIZER_JSON), roles)


def _read(folder: epath.Path, ignore: Collection[str]) -> tuple[dict[str, Any], Roles]:
    """The content of `tokenizer.json` with the tokens that the other files add, and the roles of tokens."""
    file = folder / TOKENIZER_JSON
    definition = _read_json(file)
    config = _read_json(folder / TOKENIZER_CONFIG)
    check_added(definition.setdefault("added_tokens", []), str(file))
    _add_tokens(definition, config)
    tokens = {
        role: _text(values[role])
        for values in (_read_json(folder / "special_tokens_map.json"), config)
        for role in ROLES
        if role in values and values[role] is not None
    }
    extra = config["extra_special_tokens"] if "extra_special_tokens" in config else None
    if isinstance(extra, Mapping):
        tokens |= {role: _text(token) for role, token in extra.items()}
    stop: set[int] = set()
    for name in (GENERATION, "config.json"):
        values = _read_json(folder / name)
        ids = values["eos_token_id"] if "eos_token_id" in values and "eos_token_id" not in ignore else None
        stop |= set() if ids is None else set(ids) if isinstance(ids, list) else {ids}
    roles = Roles(tokens, tuple(stop), _chat_template(folder, config))
    check_roles(roles)
    return definition, replace(roles, stop=tuple(sorted(stop)))


def write_pretrained(tokenizer: Tokenizer, folder: epath.PathLike) -> None:
    """Writes the tokenizer to files that `transformers` and `read_pretrained` read.

    Raises:
      UserError: this kind of tokenizer cannot be written as a `tokenizer.json`.
    """
    whole, folder = as_hugging_face(tokenizer), epath.Path(folder)
    ends = [index for index in whole.stop if index not in (None, whole.end_of_text)]
    tokens = dict(whole.roles.tokens)
    if "eos_token" not in tokens and whole.end_of_text is not None:
        tokens["eos_token"] = whole.decode([whole.end_of_text])
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    extra = {role: token for role, token in tokens.items() if role not in ROLES}
    config |= {role: token for role, token in tokens.items() if role in ROLES}
    config |= {"extra_special_tokens": extra} if extra else {}
    if whole.roles.chat_template is not None:
        config["chat_template"] = whole.roles.chat_template
    _write_json(folder / TOKENIZER_CONFIG, config)
    with writing(folder / TOKENIZER_JSON):
        (folder / TOKENIZER_JSON).write_bytes(whole._files()[TOKENIZER_JSON])
    if whole.stop:
        first = [] if whole.end_of_text is None else [whole.end_of_text]
        _write_json(folder / GENERATION, {"eos_token_id": [*first, *ends]})


def as_hugging_face(tokenizer: Tokenizer) -> HuggingFaceTokenizer:
    """Returns a tokenizer of the `tokenizers` library that gives the same ids.

    Raises:
      UserError: this kind of tokenizer cannot be written as a `tokenizer.json`.
    """
    match tokenizer:
        case HuggingFaceTokenizer():
            return tokenizer
        case BpeTokenizer():
            library = tokenizer.to_hugging_face()
        case ByteTokenizer():
            # Without merges each byte is a token, so any split pattern will do.
            ranks = {bytes([value]): value for value in range(256)}
            library = BpeTokenizer(ranks, "gpt2", tokenizer.special_tokens).to_hugging_face()
        case CharacterTokenizer():
            library = _characters(tokenizer)
        case _:
            raise UserError(
                f"a tokenizer of kind {tokenizer.kind} cannot be written as {TOKENIZER_JSON}: save the model without it"
            )
    return HuggingFaceTokenizer(library.to_str())


def _characters(tokenizer: CharacterTokenizer) -> tokenizers.Tokenizer:
    vocab = {tokenizer.decode([index]): index for index in range(tokenizer.vocab_size)}
    library = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=min(vocab, key=vocab.__getitem__)))
    library.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    library.decoder = decoders.Fuse()
    library.add_special_tokens([tokenizers.AddedToken(name, normalized=False) for name in tokenizer.special_tokens])
    return library


def add_tokens(definition: dict[str, Any], tokens: Iterable[Mapping[str, Any]]) -> None:
    """Adds to the content of a tokenizer.json, in place, the `tokens` whose ids it lacks."""
    have = {token["id"] for token in definition["added_tokens"]}
    for token in tokens:
        if token["id"] not in have:
            definition["added_tokens"].append(
                {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True, **token}
            )
    definition["added_tokens"].sort(key=lambda token: token["id"])


def _add_tokens(definition: dict[str, Any], config: Mapping[str, Any]) -> None:
    if "added_tokens_decoder" in config:
        named = config["added_tokens_decoder"].items()
        fields = ("content", "lstrip", "rstrip", "normalized", "single_word", "special")
        add_tokens(
            definition,
            ({"id": int(index)} | {key: token[key] for key in fields if key in token} for index, token in named),
        )


def _chat_template(folder: epath.Path, config: Mapping[str, Any]) -> str | None:
    if (folder / CHAT_TEMPLATE).exists():
        return decoded(read_file(folder / CHAT_TEMPLATE), folder / CHAT_TEMPLATE)
    found = config["chat_template"] if "chat_template" in config else None
    if isinstance(found, list):  # several templates with names
        named = {entry["name"]: entry["template"] for entry in found}
        return named["default"] if "default" in named else None
    return found


def _text(token: Any) -> str:
    return token["content"] if isinstance(token, Mapping) else token


def _read_json(path: epath.Path) -> dict[str, Any]:
    """Returns the content of a file, or an empty dictionary if it does not exist."""
    if not path.exists():
        return {}
    values = parse_json(decoded(read_file(path), path), path)
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a JSON object: download it again")
    return values


def _write_json(path: epath.Path, values: Any) -> None:
    with writing(path):
        path.write_text(json.dumps(values, indent=2, ensure_ascii=False, sort_keys=True) + "\n")
