"""Reading and intervening: effective attention, scores of heads, logit lens, attribution, ablation and patching."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT, init_cache
from gpt_jax.analysis.capture import heads_first, read, tap_shapes
from gpt_jax.analysis.effective import effective_attention
from gpt_jax.analysis.heads import head_scores, head_table
from gpt_jax.analysis.interventions import add, at, edited, mean, replace, scale, zero
from gpt_jax.analysis.lens import direct_logit_attribution, logit_lens
from gpt_jax.analysis.patching import ablation_losses, activation_patching, attribution_patching
from gpt_jax.config import (
    Attention,
    Average,
    BlockConfig,
    Delta,
    Differential,
    GatedMlp,
    Head,
    Latent,
    LayerNorm,
    LinearAttention,
    Rope,
    Score,
)
from gpt_jax.config.errors import UserError
from gpt_jax.data import Batch
from gpt_jax.decoding.generate import generate
from gpt_jax.decoding.sampling import Greedy
from tests.tiny import apply, random_params, tiny

TOKENS = jnp.array([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])


@pytest.mark.parametrize(
    "mixer",
    [
        Attention(4, kv_heads=2, head_width=4, position=Rope(), score=Score(normalizer="sinks")),
        Latent(4, rank=4, head_width=2, rotary_width=2),
        LinearAttention(4, position=Rope()),
        Delta(4),
        Average(value_width=6),
    ],
    ids=lambda mixer: type(mixer).__name__,
)
def test_effective_attention_is_the_derivative_of_a_heads_output_by_the_values(mixer: Any) -> None:
    model = GPT(tiny(mixer, layers=2))
    params = random_params(model, size=0.5)
    weights = effective_attention(model, params, TOKENS, 1)
    _, taken = apply(model, params, TOKENS, capture="blocks/1/attention/**")
    values, heads = (np.asarray(taken[f"blocks/1/attention/{name}"]) for name in ("values", "heads"))
    values = values[:, :, None] if values.ndim == 3 else values
    values = np.repeat(values, heads.shape[1] // values.shape[2], axis=2)
    np.testing.assert_allclose(np.einsum("bhts,bshe->bhte", weights, values), heads, rtol=1e-4, atol=1e-5)
    assert np.abs(np.triu(weights, 1)).max() == 0
    if "blocks/1/attention/probabilities" in taken:
        np.testing.assert_allclose(weights, taken["blocks/1/attention/probabilities"], atol=1e-6)

    @jax.jit
    def by_jacobian() -> jax.Array:
        def output(change: jax.Array) -> jax.Array:  # of channel 0, in which all positions of row 0 change
            edit = {
                "blocks/1/attention/values": lambda value: value.at[0, ..., 0].add(
                    change[:, None] if value.ndim == 4 else change
                )
            }
            _, found = model.apply(params, TOKENS, edit=edit, capture="blocks/1/attention/heads")
            return found["blocks/1/attention/heads"][0, :, :, 0]

        return jax.jacobian(output)(jnp.zeros(8))

    np.testing.assert_allclose(weights[0], by_jacobian(), atol=1e-5)


def test_what_has_no_effective_attention_is_refused() -> None:
    model = GPT(tiny(Differential(4)))
    with pytest.raises(UserError, match="differential attention are normalized"):
        effective_attention(model, random_params(model), TOKENS, 0)
    with pytest.raises(UserError, match="no layer 2: the model has 2"):
        effective_attention(model, random_params(model), TOKENS, 2)


def test_scores_of_heads_find_the_patterns_that_they_name() -> None:
    tokens = np.array([[5, 6, 7, 5, 6, 7]])
    T = tokens.shape[1]
    diagonal = np.eye(T)
    previous = np.eye(T, k=-1)
    previous[0, 0] = 1
    first = np.zeros((T, T))
    first[:, 0] = 1
    induction, duplicate = np.eye(T), np.eye(T)
    for t, s in ((3, 1), (4, 2), (5, 3)):
        induction[t], duplicate[t] = np.eye(T)[s], np.eye(T)[s - 1]
    uniform = np.tril(np.ones((T, T))) / np.arange(1, T + 1)[:, None]
    half = diagonal / 2  # half of the mass on a sink
    weights = np.stack([diagonal, previous, first, induction, duplicate, uniform, half])[None]
    found = head_scores(weights, tokens, np.zeros_like(tokens), None)
    approx = pytest.approx
    assert found["previous_token"][1] == 1 and found["first_token"][2] == 1
    assert found["induction"][3] == 1 and found["induction"][4] == 0
    assert found["duplicate_token"][4] == 1 and found["duplicate_token"][3] == 0
    assert list(found["entropy"][:5]) == [0] * 5
    assert found["entropy"][5] == approx(np.mean(np.log(np.arange(1, T + 1))))
    assert found["distance"][2] == approx(np.arange(T).mean()) and found["distance"][0] == 0
    assert found["sink"][6] == 0.5 and found["sink"][0] == 0
    assert found["effective_rank"][0] == approx(T) and found["effective_rank"][2] == approx(1)
    assert np.isnan(found["largest_logit"]).all()

    documents = head_scores(weights, tokens, np.array([[1, 1, 1, 2, 2, 2]]), None)
    assert np.isnan(documents["induction"]).all()  # nothing of a document repeats
    assert documents["previous_token"][1] == 1


def test_the_table_has_every_head_of_every_kind_of_attention() -> None:
    blocks = tuple(BlockConfig(m, GatedMlp(12)) for m in (Attention(4, position=Rope()), Delta(2, head_width=4)))
    model = GPT(dataclasses.replace(tiny(), blocks=blocks))
    params = random_params(model)
    table = head_table(model, params, TOKENS)
    assert table["layer"].tolist() == [0, 0, 0, 0, 1, 1] and table["head"].tolist() == [0, 1, 2, 3, 0, 1]
    assert {len(column) for column in table.values()} == {6}
    assert np.isfinite(table["largest_logit"][:4]).all() and np.isnan(table["largest_logit"][4:]).all()
    _, taken = apply(model, params, TOKENS, capture="blocks/0/attention/probabilities")
    p = np.asarray(taken["blocks/0/attention/probabilities"], np.float64)
    np.testing.assert_allclose(table["first_token"][:4], p[:, :, 1:, 0].mean((0, 2)), rtol=1e-6)


def test_the_logit_lens_of_the_last_layer_is_the_prediction() -> None:
    model = GPT(tiny(layers=2))
    params = random_params(model, size=0.5)
    assert list(read(model, params, TOKENS, "**"))[-2:] == ["hidden", "logits"]  # in the order of the model
    lens = logit_lens(model, params, TOKENS, top=3)
    assert lens.ids.shape == (3, 2, 8, 3) and lens.of_next.shape == (3, 2, 7) and lens.kl.shape == (3, 2, 8)
    log_p = jax.nn.log_softmax(apply(model, params, TOKENS))
    best, ids = jax.lax.top_k(log_p, 3)
    np.testing.assert_array_equal(lens.ids[-1], ids)
    np.testing.assert_allclose(lens.log_probabilities[-1], best, atol=1e-5)
    np.testing.assert_allclose(lens.of_next[-1][0, 0], log_p[0, 0, 1], atol=1e-5)
    assert np.abs(lens.kl[-1]).max() < 1e-6 < lens.kl[:-1].min()
    with pytest.raises(UserError, match=r"top must lie in \[1, 32\]"):
        logit_lens(model, params, TOKENS, top=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"block": {"residual_scale": 0.5}},
        {"block": {"residual": "parallel"}, "final_norm": LayerNorm(), "head": Head(tied=False, bias=True)},
        {"block": {"residual": "sandwich"}, "mlp": None},
    ],
    ids=["scaled", "parallel", "sandwich"],
)
def test_direct_attribution_adds_up_to_the_difference_of_the_logits(changes: dict) -> None:
    model = GPT(tiny(Attention(4, head_width=4, position=Rope(), bias=("output",)), **changes))
    params = random_params(model, size=0.5)
    ids, than = TOKENS, (TOKENS + 1) % 32
    found = direct_logit_attribution(model, params, TOKENS, ids, than)
    logits = np.asarray(apply(model, params, TOKENS), np.float64)
    difference = np.take_along_axis(logits, np.asarray(ids)[..., None], -1) - np.take_along_axis(
        logits, np.asarray(than)[..., None], -1
    )
    np.testing.assert_allclose(found.total, difference[..., 0], rtol=1e-4, atol=1e-4)
    has_heads = changes["block"].get("residual") != "sandwich"
    assert found.terms["blocks/1/attention"].shape == ((2, 8, 5) if has_heads else (2, 8))


def test_attribution_through_a_norm_of_the_sum_is_refused() -> None:
    model = GPT(tiny(block={"residual": "post"}))
    with pytest.raises(UserError, match="no sum of what sublayers write"):
        direct_logit_attribution(model, random_params(model), TOKENS, TOKENS, TOKENS)


def test_the_loss_without_a_head_is_that_of_a_model_without_it() -> None:
    model = GPT(tiny(Attention(4, head_width=4, position=Rope())))
    params = random_params(model, size=0.5)
    batch = Batch(TOKENS[:, :-1], TOKENS[:, 1:], jnp.ones((2, 7)))
    rises = ablation_losses(model, params, batch)
    assert {name: len(values) for name, values in rises.items()} == {f"blocks/{i}/attention/heads": 4 for i in (0, 1)}

    def loss(params: Any) -> float:
        log_p = jax.nn.log_softmax(apply(model, params, TOKENS[:, :-1]))
        return -float(jnp.take_along_axis(log_p, TOKENS[:, 1:, None], axis=-1).mean())

    without = jax.tree.map(lambda leaf: leaf, params)
    kernel = params["params"]["blocks"]["1"]["attention"]["output"]["kernel"]
    without["params"]["blocks"]["1"]["attention"]["output"]["kernel"] = kernel.at[4:8].set(0)
    assert rises["blocks/1/attention/heads"][1] == pytest.approx(loss(without) - loss(params), abs=1e-5)
    sublayers = ablation_losses(model, params, batch, "blocks/*/mlp_change", by_mean=True)
    assert {name: values.shape for name, values in sublayers.items()} == {
        f"blocks/{i}/mlp_change": (1,) for i in (0, 1)
    }


def test_each_tap_says_where_its_heads_are() -> None:
    """Values of the same number of axes differ in their order: a head of each is found, and its positions."""
    blocks = tuple(BlockConfig(m, GatedMlp(12)) for m in (Attention(4, forget_gate=True), LinearAttention(2)))
    model = GPT(dataclasses.replace(tiny(), blocks=blocks))
    shapes = tap_shapes(model, random_params(model), TOKENS)
    first = heads_first(model, random_params(model), TOKENS)
    B, T = TOKENS.shape
    for name, shape in shapes.items():
        if name.endswith("/state"):  # of all positions together
            assert name in first
        elif name in first:
            assert shape.shape[:3] in {(B, 4, T), (B, 2, T)}, name
        else:
            assert shape.shape[:2] == (B, T), name
    ends = {name.rpartition("/")[2] for name in first}
    assert ends == {"heads", "scores", "logits", "probabilities", "log_decay", "state"}


def test_calls_of_one_model_share_programs() -> None:
    model = GPT(tiny(Attention(4, position=Rope())))
    batch = Batch(TOKENS[:, :-1], TOKENS[:, 1:], jnp.ones((2, 7)))
    compiled: list[str] = []

    def look(seed: int) -> None:
        params = random_params(model, seed)
        read(model, params, TOKENS, "blocks/*/output")
        effective_attention(model, params, TOKENS, 1)
        ablation_losses(model, params, batch, "blocks/1/attention/heads")
        logit_lens(model, params, TOKENS)

    look(0)
    params_again = random_params(model, 1)
    jax.block_until_ready(params_again)
    jax.monitoring.register_event_duration_secs_listener(heard := lambda event, seconds, **_: compiled.append(event))
    try:
        look(1)
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    assert [event for event in compiled if "backend_compile" in event] == []


def test_a_metric_may_read_what_changes_between_two_calls() -> None:
    """As a cell of a notebook does, which runs again after a variable got another value."""
    model = GPT(tiny(Attention(4, position=Rope())))
    params, ids = random_params(model), [7, 8]

    def metric(logits: jax.Array) -> jax.Array:
        return logits[0, -1, ids[0]] - logits[0, -1, ids[1]]

    def effects() -> list[np.ndarray]:
        patchings = (activation_patching, attribution_patching)
        return [f(model, params, TOKENS[:1], TOKENS[1:], metric, "embedding")["embedding"] for f in patchings]

    before = effects()
    ids[:] = [1, 2]
    assert not any(np.allclose(a, b) for a, b in zip(before, effects(), strict=True))


def test_values_of_a_cached_call_are_those_of_the_whole_row() -> None:
    """The options of a call may hold arrays: a cache, or keys."""
    model = GPT(tiny(Attention(4, position=Rope())))
    params = random_params(model)
    whole = read(model, params, TOKENS, "blocks/*/output")
    cached = read(model, params, TOKENS, "blocks/*/output", cache=init_cache(model.config, 2, 8))
    for name, value in whole.items():
        np.testing.assert_allclose(cached[name], value, atol=1e-5)
    key = jax.random.key(0)
    assert read(model, params, TOKENS, "logits", train=True, rngs={"dropout": key}).keys() == {"logits"}


def test_patching_the_stream_of_the_last_position_restores_the_answer() -> None:
    """After the last layer only the position that is read counts; attribution is its first-order form."""
    model = GPT(tiny(Attention(4, position=Rope())))
    params = random_params(model, size=0.3)
    clean, corrupted = TOKENS[:1], TOKENS[:1].at[0, 2].set(11)

    def metric(logits: jax.Array) -> jax.Array:
        return logits[0, -1, 7] - logits[0, -1, 8]

    effects = activation_patching(model, params, clean, corrupted, metric, ("embedding", "blocks/*/output"))
    assert effects["blocks/1/output"] == pytest.approx([0] * 7 + [1], abs=1e-5)
    assert effects["embedding"] == pytest.approx([0, 0, 1, 0, 0, 0, 0, 0], abs=1e-5)
    guess = attribution_patching(model, params, clean, corrupted, metric, ("embedding", "blocks/*/output"))
    assert np.all(np.delete(guess["embedding"], 2) == 0) and guess["blocks/1/output"][:-1] == pytest.approx(0, abs=1e-6)
    near = jnp.float32(1e-3)  # a small change of the embeddings, where first order is all
    table = params["params"]["embedding"]["table"]
    table = table.at[11].set(table[4] + near * (table[11] - table[4]))
    params["params"]["embedding"]["table"] = table
    small, exact = (
        f(model, params, clean, corrupted, metric, "embedding")["embedding"][2]
        for f in (attribution_patching, activation_patching)
    )
    assert small == pytest.approx(exact, rel=0.02)
    with pytest.raises(UserError, match="make the prompts equally long"):
        activation_patching(model, params, clean, TOKENS[:1, :-1], metric)
    recurrent = GPT(tiny(Delta(2, head_width=4)))
    for patching in (activation_patching, attribution_patching):
        with pytest.raises(UserError, match='attention/state" is no value of each position'):
            patching(recurrent, random_params(recurrent), clean, corrupted, metric, "**")
    with pytest.raises(UserError, match="both prompts give the same metric"):
        attribution_patching(model, params, clean, clean, metric)


def test_an_edited_model_generates_with_its_edits() -> None:
    """The likeliest tokens of a forward pass with the edit, which differ from those without."""
    model = GPT(tiny(Attention(4, head_width=4, position=Rope())))
    params = random_params(model, size=0.5)
    edit = {"blocks/0/attention/heads": at(zero, heads=[1, 2], heads_first=True)}
    changed, ids = edited(model, edit), [3, 1, 4, 1, 5]
    options: dict[str, Any] = {"key": jax.random.key(0), "max_new_tokens": 6, "sampler": Greedy()}
    found, plain = (generate(m, params, [ids], **options).tokens[0].tolist() for m in (changed, model))
    whole, mlp = jnp.array([[*ids, *found]]), {"blocks/1/mlp_change": zero}
    likeliest = read(model, params, whole, "logits", edit)["logits"][0, len(ids) - 1 : -1].argmax(-1)
    assert likeliest.tolist() == found != plain
    both = (read(m, params, whole, "logits", e)["logits"] for m, e in ((changed, mlp), (model, edit | mlp)))
    np.testing.assert_array_equal(*both)
    with pytest.raises(UserError, match="of some positions, which move while a model generates"):
        edited(model, {"blocks/0/output": at(zero, positions=0)})


def test_edits_change_what_they_name_and_nothing_else() -> None:
    value = jnp.arange(2 * 3 * 4 * 5, dtype=jnp.float32).reshape(2, 3, 4, 5)  # (B, H, T, E)
    changed = np.asarray(at(zero, heads=1, positions=[0, -1], heads_first=True)(value))
    expected = np.array(value)
    expected[:, 1, [0, 3]] = 0
    np.testing.assert_array_equal(changed, expected)
    changed = np.asarray(at(scale(2), heads=slice(2, None), units=4)(value))  # read as (B, T, H, E)
    expected = np.array(value)
    expected[:, :, 2:, 4] *= 2
    np.testing.assert_array_equal(changed, expected)
    stream = value.reshape(2, 12, 5)
    np.testing.assert_array_equal(add(jnp.ones(5))(stream), stream + 1)
    np.testing.assert_array_equal(mean(stream)[0, 0], np.asarray(stream).mean((0, 1)))
    np.testing.assert_array_equal(replace(7)(stream), np.full((2, 12, 5), 7))
    with pytest.raises(UserError, match="has no heads"):
        at(zero, heads=0)(stream)
    with pytest.raises(UserError, match=r"no index \[12\] along axis 1"):
        at(zero, positions=12)(stream)
