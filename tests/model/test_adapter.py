"""A low-rank adapter adds the paper's product, changes no logit at first, and merges into the base's kernels."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT, ModelConfig, generate, init_cache
from gpt_jax.config import (
    Attention,
    BlockConfig,
    Delta,
    Differential,
    HeadwiseGate,
    Latent,
    LinearAttention,
    Lora,
    Mlp,
    RmsNorm,
    Rope,
    pattern,
)
from gpt_jax.config.conversion import from_dict, to_dict
from gpt_jax.config.errors import ConfigError
from gpt_jax.model.adapter import grafted, pruned, replaced, trainable
from gpt_jax.model.merge import merge_adapter
from gpt_jax.model.paths import map_with_path
from gpt_jax.model.stack import canonical, stacked
from tests.tiny import apply, random_params, tiny

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, 9)))
EVERY = Lora(rank=3, alpha=5.0, targets=("**",))
ATTENTIONS = {
    "grouped": Attention(4, kv_heads=2, head_width=4, position=Rope(), gate=HeadwiseGate(), forget_gate=True),
    "biased": Attention(4, head_width=4, bias=("query", "output")),
    "differential": Differential(4, head_width=4),
    "latent": Latent(4, 6, 4, 4, query_rank=5),
    "linear": LinearAttention(4, 4),
    "delta": Delta(4, head_width=4),
}


def names(params: Any) -> list[str]:
    found: list[str] = []
    map_with_path(lambda path, _: found.append(path), params)
    return found


def test_a_new_adapter_changes_no_logit() -> None:
    plain, adapted = GPT(tiny()), GPT(tiny(block={"adapter": EVERY}))
    before, after = (model.init(jax.random.key(0), TOKENS) for model in (plain, adapted))
    np.testing.assert_array_equal(apply(adapted, after, TOKENS), apply(plain, before, TOKENS))


def test_an_adapter_adds_the_papers_low_rank_product() -> None:
    """h = W₀x + (α/r)·B·A·x, in the paper's column notation, on the one projection that is named."""
    model = GPT(tiny(layers=1, block={"adapter": Lora(rank=3, alpha=5.0, targets=("mlp/up",))}))
    params = random_params(model)
    up = params["params"]["blocks"]["0"]["mlp"]["up"]
    a, b = np.asarray(up["adapter"]["a"]["kernel"]), np.asarray(up["adapter"]["b"]["kernel"])
    assert a.shape == (8, 3) and b.shape == (3, 12)
    plain = GPT(tiny(layers=1))
    kernel = up["kernel"] + 5.0 / 3 * np.einsum("cr,rf->cf", a, b)
    base = jax.tree.map(lambda leaf: leaf, params)
    base["params"]["blocks"]["0"]["mlp"]["up"] = {"kernel": kernel}
    assert np.abs(apply(model, params, TOKENS) - apply(plain, base, TOKENS)).max() < 1e-5
    unmerged = {**base["params"]["blocks"]["0"]["mlp"], "up": {"kernel": up["kernel"]}}
    base["params"]["blocks"]["0"]["mlp"] = unmerged
    assert np.abs(apply(model, params, TOKENS) - apply(plain, base, TOKENS)).max() > 1e-2


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_merging_changes_no_logit(kind: str) -> None:
    model = GPT(tiny(ATTENTIONS[kind], block={"adapter": EVERY}, final_norm=RmsNorm()))
    params = random_params(model, size=0.4)
    merged, one = merge_adapter(model, params)
    assert not any("adapter" in name for name in names(one))
    assert [p for p in names(params) if "adapter" not in p] == names(one)
    assert merged.config == tiny(ATTENTIONS[kind], final_norm=RmsNorm())
    logits = apply(model, params, TOKENS)
    assert np.abs(logits - apply(merged, one, TOKENS)).max() < 1e-5
    changed = jax.tree.map(lambda leaf: leaf * 0, trainable(params))
    assert np.abs(logits - apply(model, replaced(params, changed), TOKENS)).max() > 1e-2  # it had something to merge


def test_merging_accepts_scanned_stacks_and_models_without_an_adapter() -> None:
    looped = tiny(block={"adapter": EVERY}, layers=4)
    scanned = dataclasses.replace(looped, scan=True)
    params = random_params(GPT(looped), size=0.4)
    _, one = merge_adapter(GPT(looped), params)
    _, other = merge_adapter(GPT(scanned), stacked(scanned, params))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(canonical(other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    plain = GPT(tiny())
    same = random_params(plain)
    assert merge_adapter(plain, same) == (plain, same)


def test_scan_and_remat_change_no_initial_value_and_no_logit() -> None:
    other = BlockConfig(Attention(4, head_width=4), Mlp(12))
    adapted = dataclasses.replace(other, adapter=EVERY)
    looped = tiny(blocks=pattern("AB" * 2, A=adapted, B=other))
    params = GPT(looped).init(jax.random.key(0), TOKENS)
    assert {name.split("/")[1] for name in names(params) if "adapter" in name} == {"0", "2"}
    scanned = dataclasses.replace(looped, scan=True, remat="full")
    for a, b in zip(
        jax.tree.leaves(params), jax.tree.leaves(canonical(GPT(scanned).init(jax.random.key(0), TOKENS))), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    params = random_params(GPT(looped))
    ours, theirs = apply(GPT(looped), params, TOKENS), apply(GPT(scanned), stacked(scanned, params), TOKENS)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_cached_decoding_applies_the_adapter() -> None:
    model = GPT(tiny(block={"adapter": EVERY}))
    params = random_params(model)
    logits, cache = apply(model, params, TOKENS[:, :5], cache=init_cache(model.config, 2, 9))
    steps = [logits]
    for t in range(5, 9):
        logits, cache = apply(model, params, TOKENS[:, t : t + 1], cache=cache)
        steps.append(logits)
    np.testing.assert_allclose(np.concatenate(steps, 1), apply(model, params, TOKENS), atol=1e-4)
    assert generate(model, params, [[1, 2]], key=jax.random.key(0), max_new_tokens=3).tokens.shape[0] == 1


def test_dropout_acts_on_the_adapters_input_in_training_only() -> None:
    def logits(rate: float, **options: Any) -> Any:
        adapter = Lora(rank=3, dropout=rate, targets=("mlp/*",))
        return np.asarray(apply(GPT(tiny(block={"adapter": adapter})), params, TOKENS, **options))

    params = random_params(GPT(tiny(block={"adapter": Lora(rank=3, targets=("mlp/*",))})))
    training = {"train": True, "rngs": {"dropout": jax.random.key(0)}}
    np.testing.assert_array_equal(logits(0.5), logits(0.0))
    np.testing.assert_array_equal(logits(0.0, **training), logits(0.0))
    dropped = logits(0.5, **training)
    assert np.abs(dropped - logits(0.0)).max() > 1e-2
    again = logits(0.5, train=True, rngs={"dropout": jax.random.key(1)})
    assert np.abs(dropped - again).max() > 1e-2


def test_with_nearly_all_dropped_the_base_remains() -> None:
    """The base's own product never loses an input."""
    model = GPT(tiny(block={"adapter": Lora(rank=2, dropout=0.9999, targets=("**",))}))
    params = random_params(model)
    plain = apply(GPT(tiny()), {"params": pruned_base(params)}, TOKENS)
    out = apply(model, params, TOKENS, train=True, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(out, plain, atol=1e-4)


def pruned_base(params: Any) -> Any:
    return pruned(map_with_path(lambda path, leaf: None if "adapter" in path else leaf, params))["params"]


def test_a_target_that_names_no_projection_is_refused() -> None:
    tokens = jnp.zeros((1, 2), jnp.int32)
    with pytest.raises(ConfigError, match=r'"attention/querry", which names no projection; .*"attention/query"'):
        GPT(tiny(block={"adapter": Lora(targets=("mlp/up", "attention/querry"))})).init(jax.random.key(0), tokens)
    # What one of several kinds of layer has is enough.
    first = BlockConfig(Attention(4, head_width=4), Mlp(12), adapter=Lora(targets=("mlp/up", "attention/key")))
    second = dataclasses.replace(first, mlp=None)
    GPT(tiny(blocks=(first, second))).init(jax.random.key(0), tokens)


def test_adapter_parameters_are_split_off_and_joined_again() -> None:
    model = GPT(tiny(block={"adapter": Lora(2)}))
    params = random_params(model)
    part = pruned(trainable(params))
    assert len(jax.tree.leaves(part)) == 8 and all("adapter" in name for name in names(part))
    base = {"params": pruned_base(params)}
    jax.tree.map(np.testing.assert_array_equal, grafted(base, part), params)
    jax.tree.map(np.testing.assert_array_equal, replaced(params, trainable(params)), params)
    assert trainable(base) is base


def test_the_compact_configuration_keeps_adapters() -> None:
    first = BlockConfig(Attention(4, head_width=4), Mlp(12), adapter=Lora(2))
    model = tiny(blocks=pattern("AB", A=first, B=dataclasses.replace(first, adapter=None)))
    written = to_dict(model)
    assert written["adapter"]["type"] == "Lora" and written["letters"]["B"] == {"adapter": {"type": "none"}}
    assert from_dict(ModelConfig, written) == model
