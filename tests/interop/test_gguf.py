"""GGUF files against the same model in a folder of transformers' form."""

import json
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest

from gpt_jax.config import Llama3Scaling, LongRope
from gpt_jax.config.errors import ConfigError, UserError
from gpt_jax.interop.gguf_file import read_header
from gpt_jax.interop.hf import load_pretrained
from gpt_jax.interop.weights import write_weights
from tests.interop.gguf_files import BPE, TEXT, C, D, F, H, K, L, permuted, tensors, write

CONFIG = {
    "model_type": "llama", "vocab_size": BPE.vocab_size, "hidden_size": C, "intermediate_size": F,
    "num_hidden_layers": L, "num_attention_heads": H, "num_key_value_heads": K, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "rope_theta": 5e5, "tie_word_embeddings": True,
}  # fmt: skip
IDS = np.random.default_rng(1).integers(0, BPE.vocab_size, (2, 24))


def folder(path: Path, named: dict[str, np.ndarray], **changes: object) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG | changes))
    write_weights(
        path / "model.safetensors",
        {name: (tensor.dtype, tensor.shape, lambda tensor=tensor: tensor) for name, tensor in named.items()},
    )
    return path


def logits(path: Path) -> np.ndarray:
    model, params, _ = load_pretrained(path)
    return np.asarray(jax.jit(model.apply)(params, IDS))


@pytest.mark.parametrize("tied", [True, False])
def test_llama_is_that_of_a_folder_bit_for_bit(tmp_path: Path, tied: bool) -> None:
    named = tensors(tied=tied)
    write(tmp_path / "m.gguf", named)
    model, params, _ = load_pretrained(tmp_path / "m.gguf")
    other, others, _ = load_pretrained(folder(tmp_path / "hf", named, tie_word_embeddings=tied))
    assert model.config == other.config
    jax.tree.map(np.testing.assert_array_equal, params, others)
    assert np.abs(logits(tmp_path / "m.gguf")).max() > 0.1


def test_rows_of_queries_are_permuted_as_transformers_reads_them() -> None:
    """Row i of a head's first half stands beside row i of its second."""
    assert permuted(np.arange(16), 2).tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]


def test_qwen2_has_biases_and_no_permutation(tmp_path: Path) -> None:
    named = tensors(qkv_bias=True)
    write(tmp_path / "m.gguf", named, "qwen2")
    hf = folder(tmp_path / "hf", named, model_type="qwen2")
    np.testing.assert_array_equal(logits(tmp_path / "m.gguf"), logits(hf))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q5_1", "Q4_1", "Q4_0"])
def test_quantized_tensors(tmp_path: Path, kind: str) -> None:
    """Each is what the gguf package makes of it; near the original, the nearer the more bits it has."""
    named, quantized = tensors(), gguf.GGMLQuantizationType[kind]
    write(tmp_path / "m.gguf", named, kind=quantized)
    table = read_header(tmp_path / "m.gguf")[1]["token_embd.weight"]
    wanted = named["model.embed_tokens.weight"]
    assert table.kind == quantized and table.shape == wanted.shape
    np.testing.assert_array_equal(table.read(), gguf.dequantize(gguf.quantize(wanted, quantized), quantized))
    bound = {"F16": 1e-3, "BF16": 5e-3, "Q8_0": 0.01, "Q5_1": 0.05, "Q4_1": 0.1, "Q4_0": 0.15}[kind]
    assert np.abs(table.read() - wanted).max() < bound
    assert load_pretrained(tmp_path / "m.gguf")[0].config.layers == L


def test_bfloat16_on_request(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", tensors())
    model, params, _ = load_pretrained(tmp_path / "m.gguf", dtype="bfloat16")
    assert model.config.dtype == "bfloat16" and {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}


def test_the_tokenizer_and_its_template(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", tensors())
    _, _, tokenizer = load_pretrained(tmp_path / "m.gguf")
    assert tokenizer is not None
    for text in (TEXT, "naïve 안녕 😉\n\n  ok", "don't"):
        assert tokenizer.encode(text) == BPE.encode(text) and tokenizer.decode(tokenizer.encode(text)) == text
    said = tokenizer.chat([{"role": "user", "content": "fox"}])
    assert tokenizer.decode(said) == "<|im_start|><|im_start|>user\nfox<|im_end|>\n<|im_start|>assistant\n"
    assert said[0] == BPE.special_tokens["<|im_start|>"]
    assert set(tokenizer.stop) == {BPE.special_tokens["<|im_end|>"], BPE.special_tokens["<|endoftext|>"]}
    assert tokenizer.prefix == []


def test_a_beginning_of_text_that_the_file_asks_for(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", tensors(), keys={"tokenizer.ggml.add_bos_token": True})
    _, _, tokenizer = load_pretrained(tmp_path / "m.gguf")
    assert tokenizer is not None and tokenizer.prefix == [BPE.special_tokens["<|im_start|>"]]


def test_a_file_without_a_tokenizer(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", tensors(), tokenizer=False)
    assert load_pretrained(tmp_path / "m.gguf")[2] is None


def test_llama_3_divides_frequencies(tmp_path: Path) -> None:
    """The file has the divisors; ours and transformers' have what they come from."""
    frequencies = 5e5 ** -(np.arange(D // 2) / (D // 2))
    turns = 8192 * frequencies / (2 * np.pi)
    kept = np.clip((turns - 1) / 3, 0, 1)
    factors = (1 / (kept + (1 - kept) / 8)).astype(np.float32)
    write(tmp_path / "m.gguf", tensors(), extra={"rope_freqs.weight": factors})
    model, _, _ = load_pretrained(tmp_path / "m.gguf")
    assert model.config.blocks[0].attention.position.scaling == Llama3Scaling(8.0, 1.0, 4.0, 8192)
    write(tmp_path / "n.gguf", tensors(), extra={"rope_freqs.weight": np.float32([1, 2, 3, 4])})
    scaling = load_pretrained(tmp_path / "n.gguf")[0].config.blocks[0].attention.position.scaling
    assert isinstance(scaling, LongRope) and scaling.short == (1, 2, 3, 4) and scaling.attention_factor == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": {"attention.clamp_kqv": 3.0}}, 'unknown key "llama.attention.clamp_kqv": 3.0'),
        ({"keys": {"expert_count": 4}}, "no mixture of experts"),
        ({"keys": {"rope.dimension_count": 4}}, "heads that are rotated whole"),
        ({"keys": {"rope.scaling.type": "longrope"}}, "none, linear and yarn"),
        ({"keys": {"rope.scaling.type": "linear"}}, 'without "rope.scaling.factor"'),
        ({"keys": {"attention.sliding_window": 8}}, "sliding_window"),
        ({"keys": {"feed_forward_length": [64, 32]}}, "layers have one size"),
        ({"keys": {"tokenizer.ggml.pre": "bloom"}}, 'splits text as "bloom"'),
        ({"keys": {"tokenizer.ggml.unheard_of": 1}}, 'unknown key "tokenizer.ggml.unheard_of"'),
        ({"architecture": "mamba"}, 'architecture "mamba"'),
        ({"extra": {"blk.0.attn_sinks.weight": np.zeros(4, np.float32)}}, "blk.0.attn_sinks.weight"),
    ],
)
def test_refusals(tmp_path: Path, change: dict, message: str) -> None:
    write(tmp_path / "m.gguf", tensors(), **change)
    with pytest.raises(ValueError) as caught:
        load_pretrained(tmp_path / "m.gguf")
    assert message in str(caught.value)


def test_a_missing_tensor_and_one_to_ignore(tmp_path: Path) -> None:
    named = tensors()
    del named["model.layers.1.mlp.up_proj.weight"]
    write(tmp_path / "m.gguf", named)
    with pytest.raises(ValueError, match="model.layers.1.mlp.up_proj.weight"):
        load_pretrained(tmp_path / "m.gguf")
    write(tmp_path / "n.gguf", tensors(), keys={"odd": 3})
    with pytest.raises(ConfigError, match="odd"):
        load_pretrained(tmp_path / "n.gguf")
    load_pretrained(tmp_path / "n.gguf", ignore=("llama.odd",))


def test_damaged_files(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", tensors())
    whole = (tmp_path / "m.gguf").read_bytes()
    for cut in (3, 20, 200, 4000, len(whole) - 100):
        (tmp_path / "cut.gguf").write_bytes(whole[:cut])
        with pytest.raises(UserError, match="damaged|not a GGUF file"):
            load_pretrained(tmp_path / "cut.gguf")
    (tmp_path / "old.gguf").write_bytes(whole[:4] + b"\x01\0\0\0" + whole[8:])
    with pytest.raises(ValueError, match="version 1"):
        load_pretrained(tmp_path / "old.gguf")
    with pytest.raises(FileNotFoundError, match="no file"):
        load_pretrained(tmp_path / "absent.gguf")
