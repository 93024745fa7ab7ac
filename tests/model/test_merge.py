"""Files of an adapter alone, in PEFT's form: written, read, refused; with the same numbers in `peft` itself."""

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpt_jax
from gpt_jax import GPT, ModelConfig
from gpt_jax.config import Attention, BlockConfig, Delta, GatedMlp, Head, LayerNorm, Learned, Lora, Mlp, RmsNorm, Rope
from gpt_jax.config import Embedding as Embed
from gpt_jax.config.errors import ConfigError
from gpt_jax.interop.peft import load_adapter, save_adapter
from gpt_jax.model.adapter import pruned, without_adapter
from gpt_jax.model.merge import merge_adapter
from gpt_jax.model.paths import map_with_path
from tests.tiny import random_params, tiny

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, 9)))
LORA = Lora(rank=3, alpha=5.0, dropout=0.1, targets=("attention/query", "mlp/*"))


def llama(adapter: Any = LORA, **model: Any) -> ModelConfig:
    block = BlockConfig(Attention(4, kv_heads=2, position=Rope()), GatedMlp(12), RmsNorm(), adapter=adapter)
    values = {"vocab_size": 32, "context_length": 16, "width": 16, "blocks": (block,) * 2, "head": Head(tied=False)}
    return ModelConfig(**values | model)


def base_of(model: GPT, params: Any) -> tuple[GPT, Any]:
    rest = map_with_path(lambda path, leaf: None if "adapter" in path else leaf, params)
    return GPT(without_adapter(model.config)), pruned(rest)


def test_written_and_read_it_is_the_same(tmp_path: Path) -> None:
    model = GPT(llama())
    params = random_params(model, size=0.5)
    save_adapter(tmp_path, model, params, base="a/model")
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    assert values["r"] == 3 and values["lora_alpha"] == 5.0 and values["base_model_name_or_path"] == "a/model"
    assert "model.layers.1.self_attn.q_proj" in values["target_modules"] and len(values["target_modules"]) == 8
    again, read = load_adapter(tmp_path, *base_of(model, params))
    jax.tree.map(np.testing.assert_array_equal, read, params)
    np.testing.assert_array_equal(again.apply(read, TOKENS), model.apply(params, TOKENS))
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 12_000


def test_a_model_of_no_family_keeps_our_names(tmp_path: Path) -> None:
    block = BlockConfig(Delta(4, head_width=4), Mlp(12), adapter=Lora(2, targets=("**",)))
    model = GPT(tiny(blocks=(block, dataclasses.replace(block, adapter=None))))
    params = random_params(model)
    save_adapter(tmp_path, model, params)
    assert "blocks.0.attention.beta" in (tmp_path / "adapter_config.json").read_text()
    again, read = load_adapter(tmp_path, *base_of(model, params))
    assert again.config.blocks[1].adapter is None
    np.testing.assert_allclose(again.apply(read, TOKENS), model.apply(params, TOKENS), atol=1e-6)


def test_what_is_no_such_adapter_is_refused(tmp_path: Path) -> None:
    model = GPT(llama())
    params = random_params(model)
    base = base_of(model, params)
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json does not exist"):
        load_adapter(tmp_path / "nowhere", *base)
    with pytest.raises(ConfigError, match="has no adapter"):
        save_adapter(tmp_path, *base)
    save_adapter(tmp_path, model, params)
    with pytest.raises(ConfigError, match="has an adapter already"):
        load_adapter(tmp_path, model, params)
    with pytest.raises(ConfigError, match=r"adapts base_model\.model\.model\.layers\.0\..* no such projection"):
        load_adapter(tmp_path, GPT(tiny(Delta(4, head_width=4))), None)
    wide = GPT(dataclasses.replace(base[0].config, width=32))
    with pytest.raises(ConfigError, match=r"lora_A.weight of shape \(3, 16\), and this model needs \(3, 32\)"):
        load_adapter(tmp_path, wide, None)
    for key, value in {"use_dora": True, "bias": "all", "peft_type": "IA3", "rank_pattern": {"q_proj": 2}}.items():
        values = json.loads((tmp_path / "adapter_config.json").read_text())
        (tmp_path / "adapter_config.json").write_text(json.dumps(values | {key: value}))
        with pytest.raises(ConfigError, match=f"{key}"):
            load_adapter(tmp_path, *base)
        (tmp_path / "adapter_config.json").write_text(json.dumps(values))


def test_a_projection_without_a_tensor_of_its_own_is_refused(tmp_path: Path) -> None:
    """GPT-2 keeps queries, keys and values in one."""
    attention = Attention(4, bias=("query", "key", "value", "output"))
    block = BlockConfig(attention, Mlp(64, bias=True), LayerNorm(), adapter=Lora(targets=("attention/query",)))
    model = GPT(llama(blocks=(block,), embedding=Embed(Learned()), final_norm=LayerNorm(), head=Head()))
    with pytest.raises(ConfigError, match="blocks/0/attention/query shares a tensor with others"):
        save_adapter(tmp_path, model, random_params(model))


def test_the_root_of_the_rank_is_read(tmp_path: Path) -> None:
    model = GPT(llama())
    params = random_params(model)
    save_adapter(tmp_path, model, params)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(values | {"use_rslora": True}))
    again, _ = load_adapter(tmp_path, *base_of(model, params))
    assert again.config.blocks[0].adapter.scale == pytest.approx(5.0 / 3**0.5)  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # theirs, of each other
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft: pip install peft")
def test_peft_opens_it_with_the_same_logits(tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = GPT(llama())
    params = random_params(model, size=0.5)
    gpt_jax.save_pretrained(tmp_path / "base", *base_of(model, params))
    save_adapter(tmp_path / "adapter", model, params)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    with torch.no_grad():
        logits = theirs(torch.tensor(np.asarray(TOKENS))).logits.numpy()
    assert np.abs(logits - model.apply(params, TOKENS)).max() < 1e-4
    theirs.save_pretrained(tmp_path / "again")
    base, rest = gpt_jax.load_pretrained(tmp_path / "base")[:2]
    again, read = load_adapter(tmp_path / "again", base, rest)
    assert np.abs(again.apply(read, TOKENS) - model.apply(params, TOKENS)).max() < 1e-5
    merged, one = merge_adapter(again, read)
    assert np.abs(merged.apply(one, TOKENS) - logits).max() < 1e-4
