"""Folders in Hugging Face's form: every tensor and every key has its place, or an error names it."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gpt_jax
from gpt_jax import GPT, ModelConfig, load_pretrained, save_pretrained
from gpt_jax.config import Alibi, Attention, BlockConfig, GatedMlp, HeadwiseGate, Init, Rope, Score
from gpt_jax.config.errors import ConfigError, UserError
from gpt_jax.interop.weights import read_header
from gpt_jax.model.stack import stacked

FIXTURES = Path(__file__).parent / "fixtures"
TENSOR = "model.layers.1.mlp.up_proj.weight"


def copy(
    name: str,
    folder: Path,
    settings: dict[str, Any] | None = None,
    tensors: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = lambda t: t,
) -> Path:
    """A fixture with other settings and tensors."""
    values = json.loads((FIXTURES / name / "config.json").read_text()) | (settings or {})
    (folder / "config.json").write_text(json.dumps(values))
    save_file(tensors(load_file(FIXTURES / name / "model.safetensors")), folder / "model.safetensors")
    return folder


def equal(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"model_type": "mixtral", "num_local_experts": 8}, 'mixture of experts .*"num_local_experts": 8'),
        ({"model_type": "qwen3_moe"}, "mixture of experts"),
        ({"n_routed_experts": 4}, "mixture of experts"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config.*dequantized"),
        ({"model_type": "llava", "vision_config": {}}, "vision_config.*only text models"),
        ({"model_type": "lama"}, 'does not read the model_type "lama"; did you mean "llama"'),
        ({"atention_bias": True}, 'unknown key "atention_bias": True; did you mean "attention_bias".*ignore='),
        ({"brand_new": 1}, r'unknown key "brand_new": 1; .*ignore=\("brand_new",\)'),
        ({"per_layer_config": {"0": {}}}, "per_layer_config"),
        ({"hidden_act": "quick_gelu"}, "'quick_gelu', .*no such activation"),
        ({"rms_norm_eps": "small"}, '"rms_norm_eps": .small., which must be a number'),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers"),
        ({"attention_bias": 3}, "must be true or false"),
        ({"hidden_size": 26, "head_dim": None}, "not a multiple of"),
        ({"rope_parameters": {"rope_type": "spiral"}}, 'rope_type "spiral", and gpt_jax reads only default, linear'),
        ({"rope_parameters": {"rope_type": "linear"}}, 'without its "factor"'),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "power": 2}}, 'unknown key "power"'),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rotates whole heads"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, r"none for all layers"),
    ],
)
def test_settings_that_cannot_be_read_are_named(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_pretrained(copy("llama", tmp_path, settings))


def test_a_folder_without_a_family_is_refused(tmp_path: Path) -> None:
    values = json.loads((copy("llama", tmp_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in values.items() if k != "model_type"}))
    with pytest.raises(ConfigError, match="model_type"):
        load_pretrained(tmp_path)


def test_ignored_keys_are_as_though_absent(tmp_path: Path) -> None:
    wanted, _, _ = load_pretrained(FIXTURES / "llama")
    folder = copy("llama", tmp_path, {"brand_new": 1})
    assert load_pretrained(folder, ignore=("brand_new",))[0].config == wanted.config


def with_more(name: str, shape: tuple[int, ...] = (2,)) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    return lambda t: t | {name: np.ones(shape, np.float32)}


def without(name: str) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    return lambda t: {key: value for key, value in t.items() if key != name}


@pytest.mark.parametrize(
    "tensors, message",
    [
        (without(TENSOR), f"lack the tensor {TENSOR}"),
        (without("lm_head.weight"), "lack the tensor lm_head.weight"),
        (with_more("model.layers.1.mlp.bonus"), r"model.layers.1.mlp.bonus \[2\] has no place"),
        (with_more("model.layers.2.mlp.up_proj.weight"), "layers.2.mlp.up_proj.weight .* has no place"),
        (with_more("model.layers.0.self_attn.q_proj.bias"), "q_proj.bias .* has no place"),
        (lambda t: t | {TENSOR: t[TENSOR].T.copy()}, rf"{TENSOR} has the shape \(24, 36\), .* must be \(36, 24\)"),
    ],
)
def test_every_tensor_has_its_place(tensors: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_pretrained(copy("llama", tmp_path, tensors=tensors))


def test_tensors_that_carry_nothing_and_those_ignored_need_no_place(tmp_path: Path) -> None:
    _, wanted, _ = load_pretrained(FIXTURES / "llama")
    folder = copy("llama", tmp_path, tensors=with_more("model.layers.0.self_attn.rotary_emb.inv_freq"))
    equal(load_pretrained(folder)[1], wanted)
    folder = copy("llama", tmp_path, tensors=with_more("model.layers.0.mlp.bonus"))
    equal(load_pretrained(folder, ignore=("*.bonus",))[1], wanted)


def test_a_tied_heads_copy_must_be_the_table(tmp_path: Path) -> None:
    table = "model.embed_tokens.weight"
    _, wanted, _ = load_pretrained(FIXTURES / "llama_biases")
    folder = copy("llama_biases", tmp_path, tensors=lambda t: t | {"lm_head.weight": t[table].copy()})
    equal(load_pretrained(folder)[1], wanted)
    folder = copy("llama_biases", tmp_path, tensors=lambda t: t | {"lm_head.weight": 2 * t[table]})
    with pytest.raises(ValueError, match="lm_head.weight differs from model.embed_tokens.weight"):
        load_pretrained(folder)


def test_a_model_saved_without_its_head_is_read(tmp_path: Path) -> None:
    """`AutoModel` leaves out the first part of every name."""
    _, wanted, _ = load_pretrained(FIXTURES / "llama_biases")
    tensors = {
        name.removeprefix("model."): x for name, x in load_file(FIXTURES / "llama_biases/model.safetensors").items()
    }
    equal(load_pretrained(copy("llama_biases", tmp_path, tensors=lambda t: tensors))[1], wanted)


def test_what_is_no_folder_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="`hf download HuggingFaceTB/SmolLM2-135M --local-dir SmolLM2-135M`"):
        load_pretrained("HuggingFaceTB/SmolLM2-135M")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_pretrained(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_pretrained(tmp_path)
    copy("llama", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor"):
        load_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="gpt_jax does not read pytorch_model.bin"):
        load_pretrained(tmp_path)


def sharded(folder: Path) -> Path:
    copy("llama", folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{n + 1}-of-00003.safetensors" for n in range(3)]
    places = {tensor: names[i % 3] for i, tensor in enumerate(sorted(tensors))}
    for name in names:
        save_file({tensor: tensors[tensor] for tensor in places if places[tensor] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def test_shards_are_one_model(tmp_path: Path) -> None:
    equal(load_pretrained(sharded(tmp_path))[1], load_pretrained(FIXTURES / "llama")[1])


def test_broken_shards_are_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": places | {"ghost": "model-00001-of-00003.safetensors"}}))
    with pytest.raises(ValueError, match="lacks the tensor ghost"):
        load_pretrained(folder)
    index.write_text(json.dumps({"weight_map": places}))
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-00003.safetensors is missing"):
        load_pretrained(folder)
    index.write_text("[]")
    with pytest.raises(ValueError, match="index.json must hold a JSON object"):
        load_pretrained(folder)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    file = copy("llama", tmp_path) / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:100], whole[:4], b"\xff" * 64, whole[:8] + b"x" + whole[9:]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="is not a complete safetensors file|is not JSON|is not UTF-8"):
            load_pretrained(tmp_path)


@pytest.mark.parametrize("stored", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_of_any_type_become_the_one_asked_for(stored: Any, dtype: Any, tmp_path: Path) -> None:
    folder = copy("llama", tmp_path, tensors=lambda t: {name: x.astype(stored) for name, x in t.items()})
    model, params, _ = load_pretrained(folder, dtype=dtype)
    assert (model.config.dtype, model.config.param_dtype) == (dtype, dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    kernel = load_file(folder / "model.safetensors")[TENSOR].T.astype(dtype)
    np.testing.assert_array_equal(params["params"]["blocks"]["1"]["mlp"]["up"]["kernel"], kernel)


def test_bfloat16_parameters_are_saved_as_such(tmp_path: Path) -> None:
    model, params, _ = load_pretrained(FIXTURES / "qwen3", dtype="bfloat16")
    save_pretrained(tmp_path, model, params)
    assert {stored.dtype for stored in read_header(tmp_path / "model.safetensors").values()} == {
        np.dtype(ml_dtypes.bfloat16)
    }
    equal(load_pretrained(tmp_path, dtype="bfloat16")[1], params)


@pytest.mark.parametrize("name", ["qwen2_layers", "gemma2", "youtu"])
def test_a_scanned_model_is_saved_like_a_looped_one(name: str, tmp_path: Path) -> None:
    model, params, _ = load_pretrained(FIXTURES / name)
    scanned = dataclasses.replace(model.config, scan=True, remat="full", init=Init(output="zero"))
    save_pretrained(tmp_path, GPT(scanned), stacked(scanned, params))
    equal(load_pretrained(tmp_path)[1], params)


def made(attention: Attention) -> tuple[GPT, Any]:
    block = BlockConfig(attention, GatedMlp(width=24))
    model = GPT(ModelConfig(vocab_size=31, context_length=16, width=16, blocks=(block,) * 2))
    return model, model.init(jax.random.key(0), jnp.zeros((1, 4), int))


def test_a_model_of_our_own_is_saved_as_the_family_that_it_is(tmp_path: Path) -> None:
    model, params = made(Attention(4, 2, position=Rope()))
    save_pretrained(tmp_path, model, params)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"
    again, back, tokenizer = load_pretrained(tmp_path)
    assert tokenizer is None
    equal(back, params)
    tokens = jnp.arange(12).reshape(2, 6)
    np.testing.assert_array_equal(again.apply(back, tokens), model.apply(params, tokens))


def test_what_no_family_has_is_named(tmp_path: Path) -> None:
    model, params = made(Attention(4, position=Rope(), gate=HeadwiseGate()))
    with pytest.raises(
        ConfigError,
        match="no family .* can represent this model: the nearest, llama, lacks attention.gate.type 'HeadwiseGate'",
    ):
        save_pretrained(tmp_path, model, params)
    model, params = made(Attention(4, position=Alibi()))
    with pytest.raises(ConfigError, match="llama cannot represent this model: it lacks attention.position"):
        save_pretrained(tmp_path, model, params, family="llama")
    with pytest.raises(ConfigError, match='there is no family "lama"; did you mean "llama"'):
        save_pretrained(tmp_path, model, params, family="lama")
    assert not (tmp_path / "config.json").exists()


def test_parameters_of_another_model_are_refused(tmp_path: Path) -> None:
    model, params = made(Attention(4, position=Rope()))
    _, others = made(Attention(4, 2, position=Rope(), score=Score()))
    with pytest.raises(ValueError, match="blocks/./attention/(key|value)/kernel of shape .16, 8."):
        save_pretrained(tmp_path, model, others)


MEASURE = """
import sys, gpt_jax, jax, jax.numpy as jnp
def held(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key + ":")) * 1024
jnp.zeros(1).block_until_ready()
before = held("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
_, params, _ = gpt_jax.load_pretrained(sys.argv[1])
print((held("VmHWM") - before) / sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures through Linux's /proc")
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_loading_holds_little_more_than_the_model(dtype: Any, tmp_path: Path) -> None:
    """At its peak, on a model of SmolLM2-135M's shape."""
    attention = Attention(9, 3, position=Rope())
    block = BlockConfig(attention, GatedMlp(width=1536))
    model = GPT(ModelConfig(vocab_size=49152, context_length=8192, width=576, blocks=(block,) * 30))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), int))
    save_pretrained(tmp_path, model, jax.tree.map(lambda x: np.full(x.shape, 0.1, dtype), shapes))
    environment = os.environ | {"XLA_FLAGS": ""}
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    out = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment, cwd=Path(gpt_jax.__file__).parents[1]
    )
    assert float(out.stdout) < 1.3
