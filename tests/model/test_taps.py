"""Taps: what is captured is what the equations give, what is edited is what the model goes on with."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT, init_cache
from gpt_jax.config import (
    Attention,
    Delta,
    Differential,
    ElementwiseGate,
    Latent,
    LinearAttention,
    Lora,
    Rope,
    Score,
    Window,
)
from gpt_jax.config.errors import UserError
from gpt_jax.model.blocked import HIDDEN
from tests import reference_positions
from tests.tiny import apply, random_params, tiny

TOKENS = jnp.arange(16).reshape(2, 8)
MIXERS: dict[str, Any] = {
    "grouped": Attention(4, kv_heads=2, head_width=4, position=Rope(), gate=ElementwiseGate(), mask=Window(3)),
    "forgetting": Attention(4, forget_gate=True),
    "differential": Differential(4, position=Rope()),
    "latent": Latent(4, rank=4, head_width=2, rotary_width=2),
    "linear": LinearAttention(4),
    "delta": Delta(4),
}
COMMON = ("queries", "keys", "values", "heads", "output/by_head")
SOFTMAX = ("queries_unrotated", "scores", "logits", "probabilities")
HAS = {
    "grouped": (*SOFTMAX, "gate"),
    "forgetting": (*SOFTMAX, "log_decay"),
    "differential": SOFTMAX,
    "latent": (*SOFTMAX, "latents"),
    "linear": ("state",),
    "delta": ("state", "log_decay", "betas"),
}


@pytest.mark.parametrize("name", MIXERS)
def test_every_stage_has_its_name_and_reading_it_changes_no_bit(name: str) -> None:
    model = GPT(tiny(MIXERS[name], layers=1))
    params = random_params(model)
    logits, taken = apply(model, params, TOKENS, capture="**")
    for tap in (*COMMON, *HAS[name]):
        assert f"blocks/0/attention/{tap}" in taken
    block = ("attention_norm/output", "attention_change", "attention_residual", "mlp_norm/output", "mlp_residual")
    mlp = ("mlp/gate", "mlp/up", "mlp/hidden", "mlp_change")
    assert {f"blocks/0/{tap}" for tap in (*block, *mlp)} | {"embedding", "hidden", "logits"} <= taken.keys()
    np.testing.assert_array_equal(apply(model, params, TOKENS), logits)
    np.testing.assert_array_equal(logits, taken["logits"])
    written = taken["blocks/0/attention/output/by_head"].sum(2)
    np.testing.assert_allclose(written, taken["blocks/0/attention_change"], atol=1e-5)


def test_what_is_captured_equals_a_forward_by_hand() -> None:
    attention = Attention(4, kv_heads=2, head_width=4, position=Rope(), score=Score(scale=0.3, softcap=2.0))
    model = GPT(tiny(attention, layers=1))
    params = random_params(model)
    _, taken = apply(model, params, TOKENS, capture=("embedding", "hidden", "logits", "blocks/0/**"))
    found = {name: np.asarray(value, np.float64) for name, value in taken.items()}
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    block = p["blocks"]["0"]

    def norm(scale: dict, x: np.ndarray) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True) * ("bias" in scale)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + model.config.final_norm.eps) * scale["scale"] + scale.get(
            "bias", 0
        )

    def turned(x: np.ndarray) -> np.ndarray:  # (B, T, N, D)
        rows = [[[reference_positions.rope(Rope(), h, t, 8) for h in x_t] for t, x_t in enumerate(row)] for row in x]
        return np.array(rows)

    x = p["embedding"]["table"][np.asarray(TOKENS)]
    normed = norm(block["attention_norm"], x)
    project = {n: normed @ block["attention"][n]["kernel"] for n in ("query", "key", "value")}
    query, key, value = (y.reshape(2, 8, -1, 4) for y in project.values())
    scores = 0.3 * np.einsum("bthd,bshd->bhts", turned(query), np.repeat(turned(key), 2, axis=2))
    logits = np.where(np.tril(np.ones((8, 8))), 2 * np.tanh(scores / 2), float(HIDDEN))
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    heads = np.einsum("bhts,bshe->bhte", weights, np.repeat(value, 2, axis=2))
    kernel = block["attention"]["output"]["kernel"].reshape(4, 4, 8)
    by_head = np.einsum("bhte,hec->bthc", heads, kernel)
    middle = x + by_head.sum(2)
    normed_again = norm(block["mlp_norm"], middle)
    gate, up = (normed_again @ block["mlp"][n]["kernel"] for n in ("gate", "up"))
    hidden = gate / (1 + np.exp(-gate)) * up
    after = middle + hidden @ block["mlp"]["down"]["kernel"]
    expected = {
        "embedding": x,
        "blocks/0/attention_norm/output": normed,
        "blocks/0/attention/queries_unrotated": query,
        "blocks/0/attention/keys_unrotated": key,
        "blocks/0/attention/queries": turned(query),
        "blocks/0/attention/keys": turned(key),
        "blocks/0/attention/values": value,
        "blocks/0/attention/scores": scores,
        "blocks/0/attention/logits": logits,
        "blocks/0/attention/probabilities": weights,
        "blocks/0/attention/heads": heads,
        "blocks/0/attention/output/by_head": by_head,
        "blocks/0/attention_residual": middle,
        "blocks/0/mlp_norm/output": normed_again,
        "blocks/0/mlp/gate": gate,
        "blocks/0/mlp/up": up,
        "blocks/0/mlp/hidden": hidden,
        "blocks/0/mlp_residual": after,
        "hidden": norm(p["final_norm"], after),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=2e-5, err_msg=name)


def test_what_heads_write_includes_an_adapter() -> None:
    model = GPT(tiny(Attention(4, head_width=4), layers=1, block={"adapter": Lora(rank=2, targets=("**",))}))
    _, taken = apply(model, random_params(model, size=0.3), TOKENS, capture="**")
    written = taken["blocks/0/attention/output/by_head"].sum(2)
    np.testing.assert_allclose(written, taken["blocks/0/attention_change"], atol=1e-5)


def test_only_what_is_asked_for_is_captured_and_an_unknown_name_is_refused() -> None:
    model = GPT(tiny(layers=3))
    params = random_params(model)
    _, taken = apply(model, params, TOKENS, capture=("blocks/1/mlp/hidden", "blocks/*/attention/heads"))
    assert list(taken) == [
        "blocks/0/attention/heads",
        "blocks/1/attention/heads",
        "blocks/1/mlp/hidden",
        "blocks/2/attention/heads",
    ]
    with pytest.raises(UserError, match='capture="blocks/1/mlp/hiden" matches nothing; did you mean "blocks/1/mlp/h'):
        model.apply(params, TOKENS, capture=("hidden", "blocks/1/mlp/hiden"))
    with pytest.raises(UserError, match='edit="blocks/7/mlp/hidden" matches nothing'):
        model.apply(params, TOKENS, edit={"blocks/7/mlp/hidden": jnp.zeros_like})
    with pytest.raises(
        UserError, match=r"edit of blocks/0/mlp/hidden returned float32\[2, 8\]: it must return float32"
    ):
        model.apply(params, TOKENS, edit={"blocks/*/mlp/hidden": lambda x: x[..., 0]})


@pytest.mark.parametrize("scan", [False, True])
def test_an_edit_acts_in_its_layers_alone(scan: bool) -> None:
    """Zeroing what a head writes equals zeroing its rows of the output kernel, looped and scanned, captured or not."""
    model = GPT(tiny(Attention(4, head_width=4, position=Rope()), layers=3))
    params = random_params(model, size=0.5)
    kernel = params["params"]["blocks"]["1"]["attention"]["output"]["kernel"]
    other = jax.tree.map(lambda leaf: leaf, params)
    other["params"]["blocks"]["1"]["attention"]["output"]["kernel"] = kernel.at[8:12].set(0)
    expected = apply(model, other, TOKENS)

    looped, model = model, GPT(dataclasses.replace(model.config, scan=scan))
    if scan:
        from gpt_jax.model.stack import stacked

        params = stacked(model.config, params)
    for name, edit in {
        "blocks/1/attention/heads": lambda heads: heads.at[:, 2].set(0),
        "blocks/1/attention/output/by_head": lambda parts: parts.at[:, :, 2].set(0),
    }.items():
        for remat in (None, "full"):
            changed = GPT(dataclasses.replace(model.config, remat=remat))
            run = jax.jit(partial(changed.apply, edit={name: edit}, capture="blocks/*/attention/heads"))
            logits, taken = run(params, TOKENS)
            np.testing.assert_allclose(logits, expected, atol=1e-5)
        assert bool((taken[name][:, 2] == 0).all()) if name.endswith("/heads") else True
    assert len(taken) == looped.config.layers


def test_probabilities_can_be_frozen_and_moved_between_runs() -> None:
    """Patching every layer's attention and a middle residual stream reproduces the run that they come from."""
    model = GPT(tiny(Attention(4, position=Rope()), layers=2))
    params = random_params(model)
    others = TOKENS[:, ::-1]
    expected, taken = apply(model, params, others, capture="**")
    edit = {"blocks/1/attention_residual": lambda _: taken["blocks/1/attention_residual"]}
    np.testing.assert_allclose(jax.jit(partial(model.apply, edit=edit))(params, TOKENS), expected, atol=1e-5)
    frozen = {
        f"blocks/{i}/attention/probabilities": partial(_second, taken[f"blocks/{i}/attention/probabilities"])
        for i in (0, 1)
    }
    _, again = jax.jit(partial(model.apply, edit=frozen, capture="**/probabilities"))(params, TOKENS)
    for name, value in again.items():
        np.testing.assert_array_equal(value, taken[name])


def _second(value: jax.Array, _: jax.Array) -> jax.Array:
    return value


def test_edits_differentiate_and_batch() -> None:
    """The gradient with respect to a tapped value is the change that a small step of it makes; vmap gives each."""
    model = GPT(tiny(Attention(4, position=Rope()), layers=2, scan=True))
    from gpt_jax.model.stack import stacked

    params = stacked(model.config, random_params(GPT(tiny(Attention(4, position=Rope()), layers=2))))

    @jax.jit
    def score(change: jax.Array) -> jax.Array:
        return model.apply(params, TOKENS, edit={"blocks/0/mlp_residual": lambda x: x + change})[0, -1, 3]

    zero, direction = jnp.zeros((2, 8, 8)), jax.random.normal(jax.random.key(0), (2, 8, 8))
    gradient = jax.grad(score)(zero)
    assert float(jnp.abs(gradient[1]).max()) == 0.0 < float(jnp.abs(gradient[0]).max())
    step = (score(1e-2 * direction) - score(-1e-2 * direction)) / 2e-2
    np.testing.assert_allclose(jnp.vdot(gradient, direction), step, rtol=2e-2)
    many = jax.vmap(score)(jnp.stack([zero, direction]))
    np.testing.assert_allclose(many, [score(zero), score(direction)], rtol=1e-5)


@pytest.mark.parametrize("name", ["grouped", "latent", "linear"])
def test_a_cached_token_taps_what_the_whole_row_does(name: str) -> None:
    model = GPT(
        tiny(dataclasses.replace(MIXERS[name], **({"mask": Window(16)} if name == "grouped" else {})), layers=1)
    )
    params = random_params(model)
    _, whole = apply(model, params, TOKENS, capture="**")
    cache = init_cache(model.config, 2, 8)
    _, cache = apply(model, params, TOKENS[:, :7], cache=cache)
    _, _, last = apply(model, params, TOKENS[:, 7:], cache=cache, capture="**")
    for tap in ("attention/queries", "attention/heads", "attention/output/by_head", "mlp/hidden", "mlp_residual"):
        axis = 2 if tap.endswith("/heads") else 1
        expected = np.take(np.asarray(whole[f"blocks/0/{tap}"]), [7], axis=axis)
        np.testing.assert_allclose(last[f"blocks/0/{tap}"], expected, atol=2e-5, err_msg=tap)
    if name != "linear":
        p = whole["blocks/0/attention/probabilities"][:, :, 7:]
        np.testing.assert_allclose(last["blocks/0/attention/probabilities"], p, atol=1e-5)


def test_asking_for_probabilities_chooses_a_kernel_that_has_them() -> None:
    """Without the question the kernel stays as it is; reading a long row, which is cut into spans, changes no bit."""
    model = GPT(tiny(Attention(4, mask=Window(5)), layers=1, kernel="chunked"))
    params = random_params(model)
    _, taken = apply(model, params, TOKENS, capture="**/probabilities")
    np.testing.assert_allclose(taken["blocks/0/attention/probabilities"].sum(-1), 1, rtol=1e-5)
    text = str(jax.make_jaxpr(partial(model.apply, capture="hidden"))(params, TOKENS))
    assert text.count("exp") == str(jax.make_jaxpr(model.apply)(params, TOKENS)).count("exp")

    long = jnp.arange(600).reshape(1, 600) % 32
    einsum = GPT(dataclasses.replace(model.config, kernel="einsum", context_length=600))
    logits, taken = apply(einsum, params, long, capture="**/probabilities")
    np.testing.assert_array_equal(logits, apply(einsum, params, long))
    p = np.asarray(taken["blocks/0/attention/probabilities"])
    assert p.shape == (1, 4, 600, 600)
    np.testing.assert_array_equal(p[0, 0] > 0, np.tri(600) * (1 - np.tri(600, k=-5)) > 0)
