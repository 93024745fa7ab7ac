"""The whole model's contract: calls, captures, packed documents, and a gradient for every parameter."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import gpt_jax
from gpt_jax import GPT, init_cache
from gpt_jax.config import PROJECTIONS, Attention, Embedding, Head, Learned, Rope
from gpt_jax.model.blocked import scores
from tests.tiny import apply, random_params, tiny

TOKENS = jnp.arange(16).reshape(2, 8)
MODEL = GPT(tiny(Attention(4, position=Rope())))


@pytest.fixture(scope="module")
def params() -> dict:
    return random_params(MODEL)


def test_the_library_contract(params: dict) -> None:
    assert gpt_jax.GPT is GPT and gpt_jax.init_cache is init_cache
    logits = MODEL.apply(params, TOKENS)
    assert (logits.shape, logits.dtype) == ((2, 8, 32), jnp.float32)
    assert apply(MODEL, params, TOKENS, method="backbone").shape == (2, 8, 8)
    assert isinstance(apply(MODEL, params, TOKENS, train=True, rngs={"dropout": jax.random.key(0)}), jax.Array)
    cache = init_cache(MODEL.config, 2, 8)
    logits, cache, taps = apply(MODEL, params, TOKENS, cache=cache, capture="hidden")
    assert logits.shape == (2, 8, 32) and int(cache.step) == 8 and set(taps) == {"hidden"}
    hidden, taps = apply(MODEL, params, TOKENS, method="backbone", capture="hidden")
    np.testing.assert_array_equal(hidden, taps["hidden"])


def test_initial_values_are_a_function_of_the_key_alone() -> None:
    key = jax.random.key(7)
    a = MODEL.init(key, TOKENS)
    jax.tree.map(np.testing.assert_array_equal, a, MODEL.init(key, jnp.zeros((1, 3), jnp.int32)))
    jax.tree.map(np.testing.assert_array_equal, a, jax.jit(MODEL.init)(key, TOKENS))
    other = MODEL.init(jax.random.key(8), TOKENS)
    assert not np.array_equal(a["params"]["embedding"]["table"], other["params"]["embedding"]["table"])


def test_capture_is_a_glob_over_names(params: dict) -> None:
    _, taps = apply(MODEL, params, TOKENS, capture="blocks/*/attention/probabilities")
    assert {name: value.shape for name, value in taps.items()} == {
        f"blocks/{layer}/attention/probabilities": (2, 4, 8, 8) for layer in (0, 1)
    }
    with pytest.raises(ValueError, match=r'"blocks/0/attention/probability" matches nothing; did you mean "blocks/0'):
        apply(MODEL, params, TOKENS, capture="blocks/0/attention/probability")


def test_taps_that_are_not_captured_leave_the_program_unchanged(params: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    with_taps = str(jax.make_jaxpr(MODEL.apply)(params, TOKENS))
    for module in ("attention", "block", "mlp"):
        monkeypatch.setattr(f"gpt_jax.model.{module}.tap", lambda module, name, value, **axes: value)
    jax.clear_caches()
    assert str(jax.make_jaxpr(MODEL.apply)(params, TOKENS)) == with_taps


def test_no_segments_means_one_document_and_no_positions_means_from_0(params: dict) -> None:
    logits = apply(MODEL, params, TOKENS)
    explicit = apply(MODEL, params, TOKENS, segments=jnp.ones_like(TOKENS), positions=jnp.tile(jnp.arange(8), (2, 1)))
    np.testing.assert_array_equal(logits, explicit)


def test_documents_packed_into_a_row_score_as_if_alone(params: dict) -> None:
    segments, positions = jnp.array([[0] * 3 + [1] * 5] * 2), jnp.array([[0, 1, 2, 0, 1, 2, 3, 4]] * 2)
    packed = apply(MODEL, params, TOKENS, segments=segments, positions=positions)
    packed = np.asarray(packed)
    np.testing.assert_allclose(packed[:, :3], apply(MODEL, params, TOKENS[:, :3]), atol=1e-5)
    np.testing.assert_allclose(packed[:, 3:], apply(MODEL, params, TOKENS[:, 3:]), atol=1e-5)


def test_a_context_length_is_no_limit_without_a_learned_table(params: dict) -> None:
    assert MODEL.config.context_length == 16
    assert apply(MODEL, params, jnp.zeros((1, 20), jnp.int32)).shape == (1, 20, 32)


def test_a_negative_position_raises_in_an_eager_call(params: dict) -> None:
    with pytest.raises(ValueError, match=r"position -1 is out of range: it must lie in \[0, ∞\)"):
        MODEL.apply(params, TOKENS, positions=TOKENS - 1)


def test_a_vocabulary_that_is_not_known_yet_is_refused() -> None:
    with pytest.raises(ValueError, match="model.vocab_size is None: give the tokenizer's vocab_size"):
        GPT(tiny(vocab_size=None)).init(jax.random.key(0), TOKENS)


def test_every_parameter_takes_part() -> None:
    """Under a loss of the logits, each parameter of a model with everything switched on has a gradient."""
    attention = Attention(4, 2, 4, bias=PROJECTIONS)
    model = GPT(tiny(attention, embedding=Embedding(Learned()), head=Head(tied=False, bias=True)))
    params = random_params(model)
    tokens = jnp.arange(32).reshape(2, 16)
    gradients = jax.jit(jax.grad(lambda p: jax.nn.log_softmax(model.apply(p, tokens))[..., 0].sum()))(params)
    dead = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
        if not np.abs(leaf).max() > 1e-4
    ]
    # A bias of the keys adds one number to all scores of a query, which a softmax does not see.
    assert all("'key'" in path and "bias" in path for path in dead), dead


def test_the_run_time_checks_of_shapes_bite() -> None:
    """What the annotations say is checked in every test; here is the proof."""
    steps = jnp.arange(4)
    with pytest.raises(jaxtyping.TypeCheckError):
        scores(steps, steps)
    q, k = jnp.zeros((1, 2, 4, 8)), jnp.zeros((1, 2, 4, 6))
    with pytest.raises(jaxtyping.TypeCheckError):  # one D, two values
        scores(q, k)
    with pytest.raises(jaxtyping.TypeCheckError):
        MODEL.init(jax.random.key(0), TOKENS.astype(jnp.float32))
    with pytest.raises(jaxtyping.TypeCheckError):
        init_cache(MODEL.config, "2", 8)
