"""Tokenizers as GGUF files hold them."""

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.data.tokenizer.bpe import BYTE_LETTERS
from gpt_jax.interop.gguf_tokenizer import SPLITS, read_tokenizer
from tests.fuzz import damaged_json, examples, read_or_refuse


def bytewise(split: str) -> dict:
    """Bytes, and two merges that only cross what splits leave together."""
    tokens = [*sorted(BYTE_LETTERS), "12", "ab", "Ġa", "<end>"]
    kinds = [1] * 259 + [3]
    values = {"model": "gpt2", "pre": split, "tokens": tokens, "token_type": kinds, "merges": ["1 2", "a b", "Ġ a"]}
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


@pytest.mark.filterwarnings("ignore:.*composed forms")
@pytest.mark.parametrize("split", SPLITS)
def test_digits_stay_together_or_not(split: str) -> None:
    tokenizer = read_tokenizer(bytewise(split), "m.gguf")
    assert tokenizer is not None
    whole = len(tokenizer.encode("12")) == 1
    assert whole == (split not in ("smollm", "starcoder", "refact", "codeshell", "exaone", "command-r", "qwen2",
                                   "stablelm2", "deepseek-r1-qwen"))  # fmt: skip
    for text in ("x ab 1234 ½\n\n  don't, 안녕!", "\t\r\n  end "):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("<end>", "all") == [259] and tokenizer.encode("<end>", "none") != [259]


def with_spaces(**changes: object) -> dict:
    """As Llama 2's: pieces with scores, and bytes."""
    pieces = ["▁", "a", "b", "▁a", "ab", "▁ab", "ba"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256)), *pieces]
    values = {
        "model": "llama",
        "tokens": tokens,
        "token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces),
        "scores": [0.0] * 259 + [-9.0, -9.0, -9.0, -1.0, -3.0, -2.0, -4.0],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (values | changes).items()}


def test_sentencepiece_merges_the_best_score_first() -> None:
    tokenizer = read_tokenizer(with_spaces(), "m.gguf")
    assert tokenizer is not None
    named = {259 + place: piece for place, piece in enumerate(["▁", "a", "b", "▁a", "ab", "▁ab", "ba"])}
    assert [named[index] for index in tokenizer.encode("ab")] == ["▁ab"]
    assert [named[index] for index in tokenizer.encode("aba")] == ["▁ab", "a"]
    assert [named[index] for index in tokenizer.encode("a b")] == ["▁a", "▁", "b"]
    assert tokenizer.decode(tokenizer.encode("a b é")) == "a b é"
    assert tokenizer.prefix == [1] and tokenizer.stop == [2] and tokenizer.end_of_text == 2


def test_what_a_file_may_switch_off() -> None:
    plain = read_tokenizer(with_spaces(add_bos_token=False, add_space_prefix=False), "m.gguf")
    assert plain is not None and plain.prefix == []
    assert plain.encode("ab") == [263]


def test_a_whole_tokenizer_json_goes_before_all() -> None:
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    values = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b"]}
    with pytest.warns(UserWarning, match="does not preserve every text"):
        tokenizer = read_tokenizer(values | {"tokenizer.huggingface.json": library.to_str()}, "m.gguf")
    assert tokenizer is not None and tokenizer.encode("b a b") == [1, 0, 1]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="kind 'bert'"):
        read_tokenizer(with_spaces(model="bert"), "m.gguf")
    assert read_tokenizer({}, "m.gguf") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": None},
        {"tokens": []},
        {"tokens": 7},
        {"tokens": ["a", "a"]},
        {"tokens": ["a", b"b"]},
        {"tokens": ["<unk>", "x" * 10**6], "scores": [0.0, 0.0], "token_type": None},
        {"token_type": [1]},
        {"token_type": "ab"},
        {"scores": None},
        {"scores": [0.0]},
        {"scores": [float("nan")] * 266},
        {"bos_token_id": -1},
        {"eos_token_id": 2**30},
        {"eot_token_id": 266},
        {"unknown_token_id": "0"},
        {"add_bos_token": 1},
        {"model": ["llama"]},
        {"model": "gpt2", "pre": "default", "merges": ["a b c"]},
        {"model": "gpt2", "pre": "default", "merges": ["a nothing"]},
        {"model": "gpt2", "pre": "default", "merges": [7]},
        {"model": "gpt2", "pre": "\x1b[2J"},
        {"model": "gpt2", "pre": 7},
    ],
)
def test_damaged_keys_are_named(changes: dict) -> None:
    assert read_or_refuse(lambda: read_tokenizer(with_spaces(**changes), "m.gguf")) is not None


@pytest.mark.filterwarnings("ignore")
@examples(20)
@given(st.sampled_from([with_spaces(), bytewise("default")]).flatmap(damaged_json))
def test_fuzz_keys(values: dict) -> None:
    read_or_refuse(lambda: isinstance(values, dict) and read_tokenizer(values, "m.gguf"))
