"""Generation equals the plain loop: all tokens through the model without a cache, the next one from the last logits."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT, Generation, Greedy, Sampler, generate, init_cache, stream
from gpt_jax.config import (
    Alibi,
    Attention,
    BlockConfig,
    Embedding,
    GatedMlp,
    Learned,
    LongRope,
    ModelConfig,
    Rope,
    Window,
    pattern,
)
from gpt_jax.decoding import generate as programs
from gpt_jax.decoding.stages import State, append, choose, forward, init_state, is_unfinished, prefill, step_keys
from gpt_jax.model.stack import stacked
from tests.tiny import VOCABULARY, apply, random_params, tiny

# `NEW` tokens for prompts of up to 16, and one kind of sampler, wherever a test needs no other: so they share programs.
W, CONTEXT, NEW, KEY = 5, 32, 16, jax.random.key(7)
SAMPLER = Sampler(1.3, top_k=20, top_p=0.95)
step = jax.jit(forward, static_argnums=0)
read = jax.jit(prefill, static_argnums=(0, 4))


@functools.partial(jax.jit, static_argnums=0)
def draw(sampler: Any, key: jax.Array, i: int, logits: jax.Array) -> jax.Array:
    return sampler(jax.random.fold_in(key, i)[None], logits[None])[0]


def build(scan: bool = False, learned: bool = False, letters: str = "LF") -> tuple[GPT, Any]:
    """A window and full attention, grouped heads, RoPE and ALiBi in one stack; parameters per layer."""
    window = Attention(heads=4, kv_heads=2, head_width=4, mask=Window(W), position=Rope())
    full = Attention(heads=4, head_width=4, position=None if learned else Alibi())
    blocks = pattern(letters, L=BlockConfig(window, GatedMlp(width=12)), F=BlockConfig(full, GatedMlp(width=12)))
    embedding = Embedding(position=Learned()) if learned else Embedding()
    c = ModelConfig(VOCABULARY, CONTEXT, 8, blocks, embedding)
    # Logits of order 1, as trained models have: 1e-5 is 100 roundings of those.
    params = jax.tree.map(lambda leaf: 0.6 * leaf, random_params(GPT(c)))
    return GPT(dataclasses.replace(c, scan=scan)), params


@pytest.fixture(scope="module", params=[False, True], ids=["relative", "learned"])
def model(request: pytest.FixtureRequest) -> tuple[GPT, Any]:
    return build(learned=request.param)


def ids(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, shape)


def by_hand(
    gpt: GPT, params: Any, prompt: list[int], key: jax.Array, new: int, sampler: Any
) -> tuple[list[int], list[float]]:
    """One row without a cache; the last `context_length` tokens only, as nanoGPT's generate does."""
    text, logprobs = list(prompt), []
    for i in range(new):
        seen = text[-gpt.config.context_length :]
        # Behind the last token, where it changes nothing, there is what makes one shape of them all.
        padded = np.array([seen + [0] * (gpt.config.context_length - len(seen))])
        logits = np.asarray(apply(gpt, params, padded))[0, len(seen) - 1]
        chosen = int(draw(sampler, key, i, logits))
        logprobs.append(float(log_softmax(logits)[chosen]))
        text.append(chosen)
    return text[len(prompt) :], logprobs


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.float64(logits) - np.max(logits, axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def check(out: Generation, gpt: GPT, params: Any, prompts: list[list[int]], sampler: Any) -> None:
    for b, prompt in enumerate(prompts):
        tokens, logprobs = by_hand(gpt, params, prompt, jax.random.fold_in(KEY, b), out.tokens.shape[1], sampler)
        assert out.tokens[b].tolist() == tokens
        np.testing.assert_allclose(out.logprobs[b], logprobs, atol=2e-5)


@pytest.mark.parametrize(
    ("length", "chunk"),
    [(1, None), (W - 1, None), (W, None), (W + 1, None), (W, 3), (W + 1, W), (13, 1), (13, 3), (13, W), (13, W + 2)],
)
def test_cached_logits_equal_the_full_forward_at_every_position(
    model: tuple[GPT, Any], length: int, chunk: int | None
) -> None:
    gpt, params = model
    tokens = ids(2, CONTEXT).astype(np.int32)
    full = np.asarray(apply(gpt, params, tokens))
    cache = init_cache(gpt.config, 2, CONTEXT)
    logits, cache = read(gpt, params, tokens[:, :length], cache, chunk)
    np.testing.assert_allclose(logits, full[:, length - 1], atol=1e-5)
    for t in range(length, CONTEXT):
        logits, cache = step(gpt, params, tokens[:, t : t + 1], cache)
        np.testing.assert_allclose(logits, full[:, t], atol=1e-5)


@pytest.mark.parametrize("length", [1, W - 1, W, W + 1])
@pytest.mark.parametrize("sampler", [Greedy(), SAMPLER], ids=["greedy", "sampled"])
def test_text_past_the_window_equals_that_without_a_cache(model: tuple[GPT, Any], length: int, sampler: Any) -> None:
    prompts = ids(1, length).tolist()
    check(generate(*model, prompts, key=KEY, max_new_tokens=NEW, sampler=sampler), *model, prompts, sampler)


def test_unequal_prompts_in_one_batch_equal_each_alone(model: tuple[GPT, Any]) -> None:
    prompts = [ids(n, seed=n).tolist() for n in (1, 12, W, 3)]
    out = generate(*model, prompts, key=KEY, max_new_tokens=NEW, sampler=SAMPLER)
    check(out, *model, prompts, SAMPLER)
    for chunk in (1, 7):
        parts = generate(*model, prompts, key=KEY, max_new_tokens=NEW, sampler=SAMPLER, chunk=chunk)
        np.testing.assert_array_equal(parts.tokens, out.tokens)
        np.testing.assert_allclose(parts.logprobs, out.logprobs, atol=2e-5)


def test_scaled_rotations_depend_on_the_tokens_asked_for_and_not_on_padding() -> None:
    scaling = LongRope((1.0, 1.2), (3.0, 9.0), original_length=12, factor=4.0)
    gpt = GPT(tiny(Attention(2, head_width=4, position=Rope(scaling=scaling)), context_length=CONTEXT))
    params, prompts = random_params(gpt), ids(2, 8).tolist()
    out = generate(gpt, params, prompts, key=KEY, max_new_tokens=4, sampler=Greedy())
    text = np.concatenate([prompts, out.tokens], axis=1)
    full = np.asarray(apply(gpt, params, text))[:, 7:-1]  # 12 tokens: still the short factors
    np.testing.assert_array_equal(full.argmax(-1), out.tokens)
    chosen = np.take_along_axis(log_softmax(full), out.tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(chosen, out.logprobs, atol=2e-5)


def test_a_prompt_that_fills_the_context(model: tuple[GPT, Any]) -> None:
    prompts = [ids(CONTEXT - 3).tolist(), ids(2, seed=1).tolist()]
    check(generate(*model, prompts, key=KEY, max_new_tokens=3, sampler=SAMPLER), *model, prompts, SAMPLER)
    with pytest.raises(ValueError, match=r"29 tokens and 4 new ones exceed the context length of 32.*slide"):
        generate(*model, prompts, key=KEY, max_new_tokens=4)


@pytest.mark.parametrize("lengths", [(3, 20, 1), (CONTEXT, 2, 5), (CONTEXT + 9, CONTEXT - 1, 7)])
def test_sliding_reads_the_last_context_again_for_each_token(model: tuple[GPT, Any], lengths: tuple[int, ...]) -> None:
    prompts = [ids(n, seed=n).tolist() for n in lengths]
    out = generate(*model, prompts, key=KEY, max_new_tokens=CONTEXT + 6, sampler=SAMPLER, slide=True)
    check(out, *model, prompts, SAMPLER)


def test_sliding_changes_nothing_within_the_context(model: tuple[GPT, Any]) -> None:
    prompts = [[1, 2, 3], [4]]
    options = {"key": KEY, "max_new_tokens": NEW, "sampler": SAMPLER}
    plain, slid = generate(*model, prompts, **options), generate(*model, prompts, slide=True, **options)
    np.testing.assert_array_equal(plain.tokens, slid.tokens)


def test_logprobs_are_the_full_forwards_before_temperature_and_filters(model: tuple[GPT, Any]) -> None:
    gpt, params = model
    prompt = ids(6).tolist()
    out = generate(gpt, params, [prompt], key=KEY, max_new_tokens=NEW, sampler=Sampler(0.2, top_k=20, top_p=0.5))
    text = np.zeros((1, CONTEXT), int)
    text[0, : 6 + NEW] = prompt + out.tokens[0].tolist()
    logprobs = log_softmax(np.asarray(apply(gpt, params, text))[0, 5 : 5 + NEW])
    np.testing.assert_allclose(out.logprobs[0], logprobs[np.arange(NEW), out.tokens[0]], atol=2e-5)


def test_a_row_ends_with_its_stop_token_and_padding_follows(model: tuple[GPT, Any]) -> None:
    prompts, options = ids(3, 4).tolist(), {"key": KEY, "max_new_tokens": NEW, "sampler": SAMPLER}
    free = generate(*model, prompts, **options)
    assert (free.lengths == NEW).all()
    stop = {int(free.tokens[0, 4]), int(free.tokens[2, 9])}
    out = generate(*model, prompts, stop=stop, **options)
    for b in range(3):
        hits = [i for i, token in enumerate(free.tokens[b]) if int(token) in stop]
        length = hits[0] + 1 if hits else NEW
        assert out.lengths[b] == length
        np.testing.assert_array_equal(out.tokens[b], np.where(np.arange(NEW) < length, free.tokens[b], 0))
        np.testing.assert_allclose(out.logprobs[b], np.where(np.arange(NEW) < length, free.logprobs[b], 0), atol=1e-6)
    assert out.lengths[0] <= 5


def test_the_loop_ends_once_every_row_has_stopped(model: tuple[GPT, Any]) -> None:
    state = init_state(jnp.zeros((2, 3), jnp.int32), 5)
    assert is_unfinished(state, 5) and not is_unfinished(state, 0)
    state = append(state, jnp.array([4, 6]), jnp.array([-1.0, -2.0]), jnp.array([4]))
    assert state.running.tolist() == [False, True] and is_unfinished(state, 5)
    state = append(state, jnp.array([9, 4]), jnp.array([-3.0, -4.0]), jnp.array([4]))
    assert not is_unfinished(state, 5)
    assert state.tokens[:, 3:].tolist() == [[4, 0, 0, 0, 0], [6, 4, 0, 0, 0]]
    assert state.lengths.tolist() == [1, 2] and state.logprobs.tolist() == [[-1, 0, 0, 0, 0], [-2, -4, 0, 0, 0]]
    run = programs._Request(*model, [[1], [2]], KEY, 9, Greedy(), range(VOCABULARY), False, None)
    assert int(run.advance(run.begin(), 9).new) == 1


def test_calling_the_stages_by_hand_gives_the_text_of_generate(model: tuple[GPT, Any]) -> None:
    gpt, params = model
    prompt = jnp.asarray(ids(2, 6))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(2))

    @jax.jit
    def one_more(state: State, logits: jax.Array) -> tuple[State, jax.Array]:
        chosen, logprobs = choose(SAMPLER, step_keys(keys, state), logits)
        return append(state, chosen, logprobs, jnp.array([], jnp.int32)), chosen[:, None]

    state, cache, tokens = init_state(prompt, NEW), init_cache(gpt.config, 2, 6 + NEW), prompt
    while is_unfinished(state, NEW):
        logits, cache = step(gpt, params, tokens, cache)
        state, tokens = one_more(state, logits)
    out = generate(gpt, params, prompt, key=KEY, max_new_tokens=NEW, sampler=SAMPLER)
    np.testing.assert_array_equal(state.tokens[:, 6:], out.tokens)


def test_same_key_same_text_and_another_key_another(model: tuple[GPT, Any]) -> None:
    def text(key: jax.Array) -> list:
        return generate(*model, [[1, 2]] * 3, key=key, max_new_tokens=NEW, sampler=SAMPLER).tokens.tolist()

    first = text(KEY)
    assert first == text(KEY) == text(jax.random.key(7)) == text(jax.random.PRNGKey(7))
    assert first != text(jax.random.key(8))
    assert first[0] != first[1] != first[2]


def test_a_rows_text_depends_neither_on_its_place_nor_on_the_other_rows(model: tuple[GPT, Any]) -> None:
    prompts = [ids(n, seed=n).tolist() for n in (3, 9, 1, 6)]
    keys, order = jax.random.split(KEY, 4), [2, 0, 3, 1]
    options = {"max_new_tokens": NEW, "sampler": SAMPLER}
    together = generate(*model, prompts, key=keys, **options).tokens
    turned = generate(*model, [prompts[i] for i in order], key=keys[np.array(order)], **options).tokens
    np.testing.assert_array_equal(turned, together[order])
    few, many = (generate(*model, prompts[:n], key=KEY, **options).tokens for n in (2, 4))
    np.testing.assert_array_equal(few, many[:2])


@pytest.mark.parametrize(("every", "slide"), [(1, False), (50, False), (3, True)])
def test_streamed_pieces_join_to_the_same_text(model: tuple[GPT, Any], every: int, slide: bool) -> None:
    prompts, new = [ids(n, seed=n).tolist() for n in (3, 9)], 40 if slide else NEW
    options = {"key": KEY, "max_new_tokens": new, "sampler": SAMPLER, "slide": slide}
    stop = (int(generate(*model, prompts, **options).tokens[0, 7]),)
    out = generate(*model, prompts, stop=stop, **options)
    pieces = list(stream(*model, prompts, stop=stop, every=every, **options))
    assert all(len(ids) <= every for piece in pieces for ids in piece)
    for b in range(2):
        assert sum((piece[b] for piece in pieces), []) == out.tokens[b, : out.lengths[b]].tolist()


def test_a_scanned_model_generates_the_loops_text_from_stacked_parameters() -> None:
    plain, params = build(letters="LFLF")
    scanned, _ = build(scan=True, letters="LFLF")
    assert scanned.config.scan and "0:4:2" in stacked(scanned.config, params)["params"]["blocks"]
    prompts, options = [[1, 2, 3], [4]], {"key": KEY, "max_new_tokens": NEW, "sampler": SAMPLER}
    expected = generate(plain, params, prompts, **options)
    out = generate(scanned, stacked(scanned.config, params), prompts, **options)
    np.testing.assert_array_equal(out.tokens, expected.tokens)


def test_bfloat16_generates_finite_logprobs() -> None:
    gpt = GPT(tiny(dtype="bfloat16"))
    out = generate(gpt, random_params(gpt), [[1, 2]], key=KEY, max_new_tokens=8)
    assert out.logprobs.dtype == np.float32 and np.isfinite(out.logprobs).all() and (out.logprobs < 0).all()


def test_programs_are_compiled_once_a_shape() -> None:
    gpt = GPT(tiny(layers=1, context_length=64))
    params = random_params(gpt)

    def compiled(prompts: list, sampler: Any, **options: Any) -> tuple[int, int]:
        before = programs.begin._cache_size(), programs.advance._cache_size()
        generate(GPT(gpt.config), params, prompts, key=KEY, max_new_tokens=8, sampler=sampler, **options)
        list(stream(gpt, params, prompts, key=KEY, max_new_tokens=8, sampler=sampler, every=3, **options))
        return programs.begin._cache_size() - before[0], programs.advance._cache_size() - before[1]

    assert compiled([[1, 2], [3]], Sampler(0.5, top_k=3)) == (1, 1)
    assert compiled([[1], [3] * 15], Sampler(0.9, top_k=3)) == (0, 0)
    assert compiled([[1], [3] * 17], Sampler(0.9, top_k=3)) == (1, 1)
    assert compiled([[1], [3] * 31], Sampler(0.9, top_k=3)) == (0, 0)
    assert compiled([[1]], Greedy()) == (1, 1)
    assert compiled([[1]], Sampler(0)) == (0, 0)
    assert compiled([[1]], Greedy(), stop=(1,)) == (1, 1)
    assert compiled([[1]], Greedy(), stop=(2,)) == (0, 0)


@pytest.mark.optimized
def test_decoding_one_row_does_not_copy_its_cache() -> None:
    gpt = GPT(tiny(layers=3, context_length=2048))
    params = random_params(gpt)
    run = programs._Request(gpt, params, [[1]], KEY, 2000, Greedy(), (), False, None)
    leaves, tree = jax.tree.flatten((run.begin(), run.cache))

    def advance(leaves: list) -> list:
        rest = run.keys, run.sampler, run.stop, 2000
        return jax.tree.leaves(programs.advance(gpt, params, *tree.unflatten(leaves), *rest))

    memory = jax.jit(advance, donate_argnums=0).lower(leaves).compile().memory_analysis()
    cache = sum(leaf.nbytes for leaf in jax.tree.leaves(run.cache))
    assert memory.alias_size_in_bytes >= cache
    assert memory.temp_size_in_bytes < run.cache.layers[0]["key"].nbytes


def test_any_callable_of_keys_and_logits_is_a_sampler(model: tuple[GPT, Any]) -> None:
    out = generate(*model, [[1]], key=KEY, max_new_tokens=5, sampler=lambda keys, logits: jnp.argmin(logits, -1))
    worst = by_hand(*model, [1], KEY, 5, lambda keys, logits: jnp.argmin(logits, -1))[0]
    assert out.tokens[0].tolist() == worst


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": [[1], []]}, "prompt 1 is empty"),
        ({"prompts": []}, "at least one row"),
        ({"prompts": np.array([1, 2])}, r"put a single prompt in \[ \]"),
        ({"prompts": np.array([[0.5]])}, "must hold integer ids"),
        ({"prompts": [[1], [VOCABULARY]]}, f"prompt 1: token id {VOCABULARY} is out of range"),
        ({"prompts": [[-1]]}, "token id -1 is out of range"),
        ({"stop": (VOCABULARY,)}, f"stop id {VOCABULARY} is out of range"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"max_new_tokens": CONTEXT}, "exceed the context length"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"key": jax.random.split(KEY, 3)}, "one key, or one for each of the 1 prompts"),
    ],
)
def test_invalid_arguments_are_refused_before_anything_compiles(
    model: tuple[GPT, Any], change: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "begin", None)
    options = {"prompts": [[1]], "key": KEY, "max_new_tokens": 4} | change
    with pytest.raises(ValueError, match=message):
        generate(*model, **options)
    with pytest.raises(ValueError, match=message):
        stream(*model, **options)
