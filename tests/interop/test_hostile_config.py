"""Damaged and hostile config.json files: the key is named, within bounds, before anything is built."""

import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.config import Attention, BlockConfig, GatedMlp, Lora, ModelConfig, RmsNorm, Rope
from gpt_jax.config.errors import ConfigError, UserError
from gpt_jax.interop.hf import load_pretrained, read_model, save_pretrained
from gpt_jax.interop.settings import check_tree
from gpt_jax.interop.weights import open_weights, write_weights
from gpt_jax.model.paths import path_of
from gpt_jax.model.shapes import canonical_shapes, parameter_shapes
from tests.fuzz import bounded, damaged_json, examples, read_or_refuse

FIXTURES = Path(__file__).parent / "fixtures"
CONFIG = "config.json"


def settings(name: str) -> dict[str, Any]:
    return json.loads((FIXTURES / name / CONFIG).read_text())


def changed(folder: Path, name: str, change: dict[str, Any]) -> Path:
    """A fixture with other settings."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "model.safetensors").symlink_to(FIXTURES / name / "model.safetensors")
    (folder / CONFIG).write_text(json.dumps(settings(name) | change))
    return folder


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *[("llama", {"num_hidden_layers": value}) for value in (10**4, 10**9, 2**70, 0, -1, 2.0, True, "2", None, [2])],
        *[("llama", {"vocab_size": value}) for value in (2**62, 10**9, 0, True, "61")],
        *[("llama", {"hidden_size": value}) for value in (2**40, 10**6, 0, -24, [24])],
        *[("llama", {"intermediate_size": value}) for value in (2**40, 10**6, None)],
        *[("llama", {"num_attention_heads": value}) for value in (0, -4, True, 4.0, 10**6)],
        *[("llama", {"num_key_value_heads": value}) for value in (0, "2", 10**9)],
        *[("llama", {"head_dim": value}) for value in (0, -6, 10**9)],
        *[("llama", {"max_position_embeddings": value}) for value in (2**62, 0, -1, "64", INF)],
        *[("llama", {"rms_norm_eps": value}) for value in (INF, NAN, -1e-5, 0, True, "1e-5", None, [1e-5], 10**400)],
        *[("llama", {"attention_dropout": value}) for value in (NAN, -0.1, 2, "0")],
        *[("llama", {"rope_parameters": {"rope_theta": value}}) for value in (INF, NAN, 0, -1, "x", True, [1])],
        *[("llama", {"rope_parameters": value}) for value in ([1], "x", 3, {"rope_type": [1]}, {"rope_type": "x"})],
        ("llama_linear", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": INF}}),
        ("llama_linear", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": "2"}}),
        ("llama_yarn", {"rope_parameters": {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 0}}),
        ("phi3_longrope", {"rope_scaling": {"rope_type": "longrope", "short_factor": 1, "long_factor": [1]}}),
        ("llama", {"tie_word_embeddings": "no"}),
        ("llama", {"hidden_act": ["silu"]}),
        *[("qwen2_layers", {"layer_types": value}) for value in (3, "full_attention", [None] * 9, [["x"]], {"a": 1})],
        *[("gemma2", {"query_pre_attn_scalar": value}) for value in (0, NAN, -3)],
        *[("gpt_neo", {"attention_types": value}) for value in (None, 3, [["g"]], [[3, 3]], [[[[]], 1]])],
        ("gpt_neo", {"attention_types": [[["global"], 10**9]]}),
        ("cohere2", {"sliding_window_pattern": 0}),
        ("granite", {"logits_scaling": 0}),
        ("granite_swa", {"layer_rope_theta": 3}),
        ("granite_swa", {"layer_rope_theta": [NAN]}),
        ("mpt", {"attn_config": [1]}),
        ("smollm3", {"no_rope_layers": 3}),
        ("smollm3", {"no_rope_layers": [1]}),
        ("smollm3", {"no_rope_layers": [None] * 9}),
        ("smollm3", {"no_rope_layer_interval": 0, "no_rope_layers": None}),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_its_key(name: str, change: dict[str, Any], tmp_path: Path) -> None:
    (key,) = list(change)[:1]
    inner = list(change[key]) if isinstance(change[key], dict) else []
    with bounded(), pytest.raises(UserError) as caught:
        load_pretrained(changed(tmp_path, name, change))
    message = str(caught.value)
    assert any(word in message for word in (key, key.removeprefix("num_"), *inner)) and len(message) < 600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 100_000, "too deep"),
        (b'{"model_type": ' + b'{"a": ' * 100 + b"1" + b"}" * 101, "nests deeper"),
        (b'{"model_type": "llama", "model_type": "gpt2"}', "twice"),
        (b'{"model_type": "\xff"}', "not UTF-8"),
        (b"null", "must hold a JSON object"),
        (b'{"a\\u001b[2J": 1}', "no name of a setting"),
        (b'{"model_type": "x\\u001b[2J"}', r'"x\\x1b\[2J"'),
        (b'{"model_type": [null]}', "does not read the model_type"),
        (b'{"model_type": "llama", "vocab_size": ' + b"9" * 5000 + b"}", "not read"),
    ],
)
def test_what_is_no_config_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    changed(tmp_path, "llama", {})
    (tmp_path / CONFIG).write_bytes(text)
    with bounded(), pytest.raises(UserError, match=message):
        load_pretrained(tmp_path)


def test_infinity_is_no_setting_of_our_own() -> None:
    for make in (RmsNorm, lambda eps: Lora(alpha=eps), Rope):
        with pytest.raises(ConfigError, match="must be finite, not inf"):
            make(INF)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / CONFIG)
    with bounded(), pytest.raises(UserError, match="is not a file but"):
        load_pretrained(tmp_path)


def test_integers_are_no_weights(tmp_path: Path) -> None:
    """One letter in a header turns floats into integers of the same size."""
    shutil.copytree(FIXTURES / "llama", tmp_path / "llama")
    file = tmp_path / "llama" / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"F32"', b'"I32"', 1))
    with pytest.raises(UserError, match="is of type int32, which is none of weights"):
        load_pretrained(tmp_path / "llama")


def test_a_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    """GPT-NeoX has an older name of its head."""
    tensors = open_weights(FIXTURES / "gpt_neox")
    entries = {name: (x.dtype, x.shape, x.read) for name, x in tensors.items()}
    both = entries | {"lm_head.weight": entries["embed_out.weight"], "embed_out.weight": entries["embed_out.weight"]}
    write_weights(tmp_path / "model.safetensors", both)
    shutil.copy(FIXTURES / "gpt_neox" / CONFIG, tmp_path)
    with pytest.raises(UserError, match="older and its newer name"):
        load_pretrained(tmp_path)


def test_a_thousand_layers_take_seconds(tmp_path: Path) -> None:
    block = BlockConfig(Attention(1, position=Rope()), GatedMlp(2))
    tall = ModelConfig(vocab_size=3, context_length=4, width=2, blocks=(block,) * 1000)
    with bounded():
        assert len(canonical_shapes(tall)) == 1000 * 9 + 2


def test_shapes_of_one_layer_of_each_kind_are_those_of_all() -> None:
    kinds = [BlockConfig(Attention(2, kv, position=Rope()), GatedMlp(width)) for kv, width in ((1, 4), (2, 6))]
    model = ModelConfig(vocab_size=3, context_length=4, width=4, blocks=tuple(kinds[i] for i in (0, 1, 1, 0, 1)))
    wanted = {path_of(keys): leaf.shape for keys, leaf in jax.tree.leaves_with_path(parameter_shapes(model))}
    assert list(canonical_shapes(model).items()) == list(wanted.items())


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that we wrote."""
    folder = tmp_path_factory.mktemp("ours")
    model, params, _ = load_pretrained(FIXTURES / "llama")
    save_pretrained(folder, model, params)
    return folder


def test_our_own_settings_are_sealed(ours: Path, tmp_path: Path) -> None:
    shutil.copytree(ours, tmp_path / "ours")
    file = tmp_path / "ours" / CONFIG
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"eos_token_id": 3}))  # which changes no result
    load_pretrained(tmp_path / "ours")
    file.write_text(json.dumps(values | {"rms_norm_eps": 2 * values["rms_norm_eps"]}))
    with pytest.raises(ConfigError, match="has changed since gpt_jax wrote it"):
        load_pretrained(tmp_path / "ours")
    load_pretrained(tmp_path / "ours", ignore=(CONFIG,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@cache
def loaded(folder: Path) -> Any:
    return load_pretrained(folder)


def equal(found: Any, wanted: Any) -> bool:
    return found[0].config == wanted[0].config and jax.tree.all(jax.tree.map(np.array_equal, found[1], wanted[1]))


@examples(15)
@given(st.data())
def test_a_damaged_config_of_ours_is_the_same_or_refused(ours: Path, folder: Path, data: st.DataObject) -> None:
    wanted = loaded(ours)
    (folder / CONFIG).write_text(json.dumps(data.draw(damaged_json(json.loads((ours / CONFIG).read_text())))))
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "model.safetensors").symlink_to(ours / "model.safetensors")
    read_or_refuse(lambda: load_pretrained(folder), lambda found: equal(found, wanted))


NAMES = sorted({settings(folder.name)["model_type"]: folder.name for folder in FIXTURES.iterdir()}.values())


@cache
def stored(name: str) -> Any:
    return open_weights(FIXTURES / name)


@given(st.data())
def test_a_damaged_config_of_any_family_is_understood_or_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(NAMES))
    values = data.draw(damaged_json(settings(name)))
    read_or_refuse(lambda: check_tree(values, CONFIG) or read_model(values, stored(name)))


@examples(15)
@given(st.data())
def test_a_damaged_config_of_any_family_is_read_or_refused(folder: Path, data: st.DataObject) -> None:
    """Other settings may be those of another legal model; they get no other tensors."""
    name = data.draw(st.sampled_from(NAMES[::6]))
    changed(folder, name, {})
    (folder / CONFIG).write_text(json.dumps(data.draw(damaged_json(settings(name)))))
    read_or_refuse(lambda: load_pretrained(folder))
