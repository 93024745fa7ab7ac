"""Damaged and hostile tokenizer files: one sentence within bounds, or the same tokens."""

import copy
import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from gpt_jax.config.errors import UserError
from gpt_jax.data.tokenizer import BpeTokenizer, CharacterTokenizer, HuggingFaceTokenizer, Roles, load_tokenizer
from gpt_jax.data.tokenizer import definition as definitions
from gpt_jax.data.tokenizer.pretrained import read_pretrained, write_pretrained
from tests.fuzz import bounded, damaged, damaged_json, examples, read_or_refuse

PROBE = "the quick brown fox\n jumps wörld 123 "
BPE = BpeTokenizer.train([PROBE * 3], 290, "gpt2", ["<|endoftext|>", "<s>"])
GOOD: dict[str, Any] = json.loads(BPE.to_hugging_face().to_str())
TEMPLATE = "{% for m in messages %}{{ m.content }}<s>{% endfor %}"


def replace(pattern: Any, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def nested(depth: int) -> dict[str, Any]:
    step: dict[str, Any] = {"type": "NFC"}
    for _ in range(depth):
        step = {"type": "Sequence", "normalizers": [step]}
    return step


def changed(**parts: Any) -> dict[str, Any]:
    return {**copy.deepcopy(GOOD), **parts}


def with_model(**parts: Any) -> dict[str, Any]:
    return changed(model={**GOOD["model"], **parts})


def added(**parts: Any) -> dict[str, Any]:
    return changed(added_tokens=[{**GOOD["added_tokens"][0], **parts}])


def split(pattern: str) -> dict[str, Any]:
    return changed(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    )


VOCAB: dict[str, Any] = GOOD["model"]["vocab"]
HOSTILE = {
    "a huge id": (with_model(vocab={**VOCAB, "huge": 2**30}), "token id 1073741824"),
    "a huge added id": (added(id=2**30), "token id 1073741824"),
    "a huge id of a word": (changed(model={"type": "WordLevel", "vocab": {"a": 2**30}, "unk_token": "a"}), "token id"),
    "a negative id": (with_model(vocab={**VOCAB, "minus": -1}), "token id -1"),
    "no integer": (with_model(vocab={**VOCAB, "half": 2.5}), "token id 2.5"),
    "a truth value": (with_model(vocab={**VOCAB, "true": True}), "token id true"),
    "an id twice": (with_model(vocab={**VOCAB, "again": 5}), "two tokens have one id"),
    "a vocabulary that is null": (with_model(vocab=None), "vocabulary is null"),
    "a model that is a list": (changed(model=[]), "no model"),
    "unknown tokens in merges": (with_model(merges=[["nothing", "known"]]), "not a valid tokenizer.json"),
    "merges that are null": (with_model(merges=None), "not a valid tokenizer.json"),
    "a long affix": (with_model(end_of_word_suffix="x" * 10**6), "end_of_word_suffix has 1000000"),
    "an id that the encoder denies": (added(content="<s>", id=7), "it says that '<s>' has the id 7"),
    "an added token twice": (changed(added_tokens=2 * GOOD["added_tokens"]), "is there twice"),
    "added tokens that are null": (changed(added_tokens=None), "added_tokens are null"),
    "an added token that is null": (changed(added_tokens=[None]), "has no text"),
    "steps in a list": (changed(normalizer=[]), "normalizer is a list"),
    "a type that is a list": (changed(normalizer={"type": []}), "type of a step is a list"),
    "a step too deep": (changed(normalizer=nested(20)), "nested more than 8 deep"),
    "forty doublings": (
        changed(normalizer={"type": "Sequence", "normalizers": 40 * [replace({"String": "a"}, "aa")]}),
        "more than 256 times",
    ),
    "forty bytes as letters": (
        changed(pre_tokenizer={"type": "Sequence", "pretokenizers": 40 * [GOOD["pre_tokenizer"]["pretokenizers"][1]]}),
        "more than 256 times",
    ),
    "a long replacement": (changed(normalizer=replace({"Regex": "x*"}, "y" * 10**5)), "more than 256 times"),
    "a thousand steps": (changed(normalizer={"type": "Sequence", "normalizers": 1000 * [nested(0)]}), "1003 steps"),
    "a pattern that takes for ever": (split("((a|a)*)*b|(a+)+$|x"), "steps fail on plain text"),
    "a pattern of megabytes": (split("a|" * 10**5), "pattern has more than 10,000"),
    "parts of no length": (
        changed(pre_tokenizer={"type": "FixedLength", "length": 0}),
        "steps fail on plain text|did not match",
    ),
    "a map of characters that is none": (
        changed(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA////"}),
        "steps fail on plain text",
    ),
    "tokens around a text": (
        changed(
            post_processor={
                "type": "TemplateProcessing",
                "single": 1000 * [{"SpecialToken": {"id": "x", "type_id": 0}}],
                "pair": [],
                "special_tokens": {"x": {"id": "x", "ids": 1000 * [1], "tokens": 1000 * ["x"]}},
            }
        ),
        "1000000 tokens around",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_definition_is_refused_within_bounds(case: str) -> None:
    values, reason = HOSTILE[case]
    with bounded(), pytest.raises(UserError, match=reason):
        HuggingFaceTokenizer(json.dumps(values), "tokenizer.json")


def test_what_a_file_says_of_lengths_is_not_used() -> None:
    padding = {
        "strategy": {"Fixed": 10**10},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "a",
    }
    with bounded():
        tokenizer = HuggingFaceTokenizer(json.dumps(changed(padding=padding)))
        assert tokenizer.encode(PROBE) == BPE.encode(PROBE) and tokenizer.prefix == []


def test_unusual_steps_are_tried_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Published tokenizers have patterns that differ; they are as fast, after one trial."""
    calls: list[str] = []
    call = definitions.confined.call
    monkeypatch.setattr(
        definitions.confined, "call", lambda *args, **limits: calls.append(args[1]) or call(*args, **limits)
    )
    definitions._try_out.cache_clear()
    HuggingFaceTokenizer(json.dumps(GOOD))
    assert not calls
    for _ in range(2):
        unusual = HuggingFaceTokenizer(json.dumps(split(r"\p{L}+|\p{N}{1,2}| ?[^\s\p{L}]+|\s+")))
    assert calls == ["try_out"] and unusual.vocab_size == BPE.vocab_size


def test_a_panic_of_the_library_is_one_sentence() -> None:
    word = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    values = json.loads(word.to_str())
    values["decoder"] = {"type": "Strip", "content": "a", "start": 0, "stop": 50}
    with pytest.raises(UserError, match="not a valid tokenizer.json"):
        HuggingFaceTokenizer(json.dumps(values))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"aGVs 1073741824", "1073741824 is not a token id"),
        (b"aGVs -5", "non-negative"),
        (b"aGVs 7", "distinct"),
        (b"aGVs " + b"9" * 5000, "not base64, space, rank"),
        (b"aGVs 1e3", "not base64, space, rank"),
        (b"\xff\xfe 300", "not base64, space, rank"),
        (b"YQ== 300", "repeated token"),
        (b"aGVs", "not base64, space, rank"),
    ],
)
def test_a_hostile_rank_file_is_refused_within_bounds(tmp_path: Path, line: bytes, reason: str) -> None:
    file = tmp_path / "r50k_base.tiktoken"
    file.write_bytes(BPE._files()["ranks.tiktoken"] + line + b"\n")
    with bounded(), pytest.raises(UserError, match=reason):
        load_tokenizer(file)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
    for number, name in enumerate((*names, "config.json", "chat_template.jinja", "gpt_jax_tokenizer.json")):
        for kind in ("folder", "pipe"):
            folder = tmp_path / f"{number}-{kind}"
            folder.mkdir()
            write_pretrained(BPE, folder)
            (folder / name).unlink(missing_ok=True)
            (folder / name).mkdir() if kind == "folder" else os.mkfifo(folder / name)
            with pytest.raises(UserError, match="is not a file but"):
                load_tokenizer(folder)


CONFIG = {
    "added_tokens_decoder": {"0": {"content": "!", "special": True}},
    "bos_token": "<s>",
    "eos_token": {"content": "<s>"},
    "extra_special_tokens": {"a": "<s>"},
    "chat_template": [{"name": "default", "template": "x"}],
}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": []}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1073741824": {"content": "new", "special": True}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"400": {"content": "new", "special": True}}}),
        ("tokenizer_config.json", {"bos_token": 3}),
        ("tokenizer_config.json", {"eos_token": {"text": 3}}),
        ("tokenizer_config.json", {"extra_special_tokens": {"a": ["b"]}}),
        ("tokenizer_config.json", {"chat_template": 3}),
        ("tokenizer_config.json", {"chat_template": [None]}),
        ("generation_config.json", {"eos_token_id": "2"}),
        ("generation_config.json", {"eos_token_id": [[2]]}),
        ("generation_config.json", []),
        ("special_tokens_map.json", None),
    ],
)
def test_damaged_files_beside_it_are_named(tmp_path: Path, name: str, values: Any) -> None:
    write_pretrained(BPE, tmp_path)
    (tmp_path / name).write_text(json.dumps(values))
    assert read_or_refuse(lambda: read_pretrained(tmp_path)) is not None


# ── fuzz ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def unigram() -> dict[str, Any]:
    library = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("▁a", -1.0), ("b", -2.0), ("c", -3.0)], 0, False))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    return json.loads(library.to_str())


def wordpiece() -> dict[str, Any]:
    library = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    library.train_from_iterator([PROBE], trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]", "[CLS]"]))
    library.post_processor = tokenizers.processors.BertProcessing(("[CLS]", 1), ("[CLS]", 1))
    return json.loads(library.to_str())


def use(tokenizer: HuggingFaceTokenizer) -> None:
    """Whatever a file makes of text, it gives ids of its vocabulary, or one sentence."""
    ids = tokenizer.encode(PROBE, "none")
    assert all(0 <= index < tokenizer.vocab_size for index in ids)
    assert isinstance(tokenizer.decode(ids), str) and isinstance(tokenizer.prefix, list)
    tokenizer.content_hash()


def read(definition: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        use(HuggingFaceTokenizer(definition))


SMALL = {**GOOD, "model": {**GOOD["model"], "vocab": VOCAB, "merges": GOOD["model"]["merges"]}}


@examples(15)
@given(st.sampled_from([SMALL, unigram(), wordpiece()]).flatmap(damaged_json))
def test_fuzz_definition_values(values: Any) -> None:
    read_or_refuse(lambda: read(json.dumps(values)))


@examples(15)
@given(st.sampled_from([json.dumps(values).encode() for values in (unigram(), wordpiece())]).flatmap(damaged))
def test_fuzz_definition_bytes(content: bytes) -> None:
    read_or_refuse(lambda: read(content.decode("utf-8", "replace")))


@examples(15)
@given(damaged(BPE._files()["ranks.tiktoken"]))
def test_fuzz_ranks(content: bytes) -> None:
    read_or_refuse(lambda: BpeTokenizer.from_ranks(content, "gpt2", {"<s>": 290}))


@examples(15)
@given(damaged_json(CONFIG))
def test_fuzz_settings(tmp_path_factory: pytest.TempPathFactory, values: Any) -> None:
    folder = tmp_path_factory.mktemp("settings")
    (folder / "tokenizer.json").write_text(json.dumps(GOOD))
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_or_refuse(lambda: use(read_pretrained(folder)))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["bpe", "characters", "huggingface"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    {
        "bpe": BPE,
        "characters": CharacterTokenizer(PROBE),
        "huggingface": HuggingFaceTokenizer(json.dumps(GOOD), roles=Roles({"bos_token": "<s>"}, (3,), TEMPLATE)),
    }[request.param].save(folder)
    return folder


@examples(10)
@given(st.data())
def test_fuzz_saved(saved: Path, data: st.DataObject) -> None:
    """What a run saved has a hash: damage is refused, or changes nothing."""
    good = load_tokenizer(saved)
    name = data.draw(st.sampled_from(sorted(file.name for file in saved.iterdir())))
    content = (saved / name).read_bytes()
    try:
        (saved / name).write_bytes(data.draw(damaged(content)))
        read_or_refuse(
            lambda: load_tokenizer(saved),
            lambda found: found.encode(PROBE) == good.encode(PROBE) and found.content_hash() == good.content_hash(),
        )
    finally:
        (saved / name).write_bytes(content)
