"""Damaged and hostile adapters in PEFT's form: the whole adapter that was saved, or one sentence."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.config import Attention, BlockConfig, GatedMlp, Head, Lora, ModelConfig, Rope
from gpt_jax.config.errors import UserError
from gpt_jax.interop.peft import CONFIG, WEIGHTS, load_adapter, save_adapter
from gpt_jax.interop.weights import read_header
from gpt_jax.model.adapter import pruned, without_adapter
from gpt_jax.model.gpt import GPT
from gpt_jax.model.paths import map_with_path
from tests.fuzz import bounded, damaged, damaged_json, read_or_refuse
from tests.tiny import random_params

LORA = Lora(rank=3, alpha=5.0, targets=("attention/query",))
QUERY = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"


class Saved(NamedTuple):
    folder: Path
    base: tuple[GPT, Any]
    config: dict[str, Any]
    weights: bytes
    tensors: dict[str, np.ndarray]
    wanted: Any


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    block = BlockConfig(Attention(2, position=Rope()), GatedMlp(6), adapter=LORA)
    model = GPT(ModelConfig(vocab_size=5, context_length=8, width=8, blocks=(block,) * 2, head=Head(tied=False)))
    params = random_params(model, size=0.5)
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(folder, model, params)
    rest = pruned(map_with_path(lambda path, leaf: None if "adapter" in path else leaf, params))
    base = GPT(without_adapter(model.config)), rest
    tensors = {name: tensor.read() for name, tensor in read_header(folder / WEIGHTS).items()}
    config = json.loads((folder / CONFIG).read_text())
    return Saved(folder, base, config, (folder / WEIGHTS).read_bytes(), tensors, load_adapter(folder, *base))


def foreign(saved: Saved, folder: Path, config: Any, tensors: dict[str, np.ndarray]) -> Any:
    """Reads the adapter as another library writes it, without hashes."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        kind = {"float32": "F32", "int32": "I32"}[tensor.dtype.name]
        header[name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": [len(data), len(data) + tensor.nbytes]}
        data += tensor.tobytes()
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data)
    (folder / CONFIG).write_text(json.dumps(config))
    return load_adapter(folder, *saved.base)


def equal(found: Any, wanted: Any) -> bool:
    return found[0].config == wanted[0].config and jax.tree.all(jax.tree.map(np.array_equal, found[1], wanted[1]))


def without(config: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != key}


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *[({"r": value}, '"r" is') for value in (2.9, 0, -3, True, "3", None, [3], 2**40)],
        ({"r": 2}, "this model needs"),
        *[({"lora_alpha": value}, '"lora_alpha" is') for value in (INF, NAN, -1, 0, True, "5", None)],
        *[({"lora_dropout": value}, "dropout") for value in (NAN, 1, -0.1, "0")],
        *[({"target_modules": value}, '"target_modules"') for value in (None, 3, [], [3], [""], {"a": 1}, ["v_proj"])],
        ({"target_modules": ["q_proj", "v_proj"]}, "do not fit its tensors"),
        ({"use_rslora": 3}, '"use_rslora"'),
        ({"peft_type": ["LORA"]}, "peft_type"),
        ({"brand_new": 1}, 'unknown key "brand_new": 1'),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"rank_pattern": [[]]}, "rank_pattern"),
    ],
)
def test_a_setting_out_of_range_is_named(saved: Saved, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with bounded(), pytest.raises(UserError, match=message):
        foreign(saved, tmp_path, saved.config | change, saved.tensors)


def test_settings_that_lack_are_named_and_those_that_are_off_are_not(saved: Saved, tmp_path: Path) -> None:
    for key in ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules"):
        with pytest.raises(UserError, match=f'lacks "{key}"'):
            foreign(saved, tmp_path, without(saved.config, key), saved.tensors)
    off = saved.config | {"brand_new": None, "another": False, "target_modules": ["q_proj"]}
    assert equal(foreign(saved, tmp_path, off, saved.tensors), saved.wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {}, "no tensor of an adapter"),
        (lambda t: {name: x for name, x in t.items() if "lora_A" in name}, "without its other half"),
        (lambda t: {name: x for name, x in t.items() if "lora_B" in name}, "without its other half"),
        (lambda t: {name: x for name, x in t.items() if ".1." not in name}, "do not fit its tensors"),
        (lambda t: t | {QUERY.format(9, "A"): t[QUERY.format(0, "A")]}, "no such projection"),
        (lambda t: t | {QUERY.format("-1", "A"): t[QUERY.format(0, "A")]}, "no such projection"),
        (lambda t: t | {"base_model.model.lm_head.weight": np.zeros((5, 8), np.float32)}, "no such projection"),
        (lambda t: t | {QUERY.format(0, "A").removeprefix("base_model.model."): t[QUERY.format(0, "A")]}, "one tensor"),
        (lambda t: {name: x.astype(np.int32) for name, x in t.items()}, "none of weights"),
        (lambda t: {name: x.T for name, x in t.items()}, "this model needs"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(saved: Saved, tmp_path: Path, change: Callable, message: str) -> None:
    with bounded(), pytest.raises(UserError, match=message):
        foreign(saved, tmp_path, saved.config, change(saved.tensors))


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_waited_for(saved: Saved, tmp_path: Path, name: str, make: Callable) -> None:
    (tmp_path / CONFIG).write_text(json.dumps(saved.config))
    (tmp_path / WEIGHTS).write_bytes(saved.weights)
    (tmp_path / name).unlink()
    make(tmp_path / name)
    with bounded(), pytest.raises(UserError, match="is not a file but"):
        load_adapter(tmp_path, *saved.base)


@given(st.data())
def test_damaged_settings_of_ours_are_the_same_or_refused(saved: Saved, data: st.DataObject) -> None:
    (saved.folder / WEIGHTS).write_bytes(saved.weights)
    (saved.folder / CONFIG).write_text(json.dumps(data.draw(damaged_json(saved.config))))
    read_or_refuse(lambda: load_adapter(saved.folder, *saved.base), lambda found: equal(found, saved.wanted))


@given(st.data())
def test_damaged_weights_of_ours_are_the_same_or_refused(saved: Saved, data: st.DataObject) -> None:
    (saved.folder / CONFIG).write_text(json.dumps(saved.config))
    (saved.folder / WEIGHTS).write_bytes(data.draw(damaged(saved.weights)))
    read_or_refuse(lambda: load_adapter(saved.folder, *saved.base), lambda found: equal(found, saved.wanted))
