"""What introductory texts say a GPT is, claim by claim: each test's docstring is the sentence it checks.

Sources: Stanford's cs336, LLM Visualization, minbpe, lit-llama. Letters as in the design: B T S C H K D F V L.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT, Greedy, Sampler, generate, init_cache
from gpt_jax.analysis.embeddings import cosine_similarity, nearest_neighbours
from gpt_jax.config import Attention, Embedding, LayerNorm, Learned, Rope, Score
from gpt_jax.data.rows import Stream
from gpt_jax.data.tokenizer import ByteTokenizer, load_tokenizer
from gpt_jax.decoding import stages
from gpt_jax.model import mask
from gpt_jax.model.norm import make_norm
from gpt_jax.model.paths import map_with_path, matches
from gpt_jax.training.loss import cross_entropy
from tests.tiny import VOCABULARY, random_params, tiny

B, T, C, H, D = 2, 8, 8, 4, 2
MODEL = GPT(tiny(Attention(H), embedding=Embedding(Learned())))
TOKENS = jnp.array([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])
apply = jax.jit(MODEL.apply, static_argnames=("method", "capture"))


@pytest.fixture(scope="module")
def params() -> Any:
    return random_params(MODEL)


@pytest.fixture(scope="module")
def taps(params: Any) -> dict[str, jax.Array]:
    return apply(params, TOKENS, capture="**")[1]


# ── text → tokens → ids ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", ["", "Here I am", "안녕 😉\r\n\0", "\ufeffнаïve"])
def test_text_becomes_ids_from_a_vocabulary_of_v_and_comes_back(text: str) -> None:
    """decode(encode(s)) == s for any UTF-8 text."""
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == text


def test_a_whitespace_toy_vocabulary_maps_here_i_am_to_0_1_2(tmp_path: Any) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    toy = Tokenizer(models.WordLevel({"Here": 0, "I": 1, "am": 2}, unk_token="am"))
    toy.pre_tokenizer = pre_tokenizers.Whitespace()
    toy.save(str(tmp_path / "tokenizer.json"))
    with pytest.warns(UserWarning, match="does not preserve every text"):
        tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert list(tokenizer.encode("Here I am")) == [0, 1, 2]


# ── ids → vectors ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_id_looks_up_a_vector_of_c_numbers_and_each_gets_its_positions_code_added(params: Any, taps: Any) -> None:
    """x = wte[id] + wpe[:T], (B, T, C)."""
    wte, wpe = params["params"]["embedding"]["table"], params["params"]["embedding"]["position"]["table"]
    assert taps["embedding"].shape == (B, T, C)
    np.testing.assert_array_equal(taps["embedding"], wte[TOKENS] + wpe[:T])


@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_an_id_outside_0_to_v_raises(params: Any, token: int) -> None:
    with pytest.raises(ValueError, match="token id"):
        MODEL.apply(params, TOKENS.at[1, 3].set(token))


def test_a_row_longer_than_a_learned_table_raises(params: Any) -> None:
    with pytest.raises(ValueError, match="do not fit the learned table"):
        MODEL.apply(params, jnp.zeros((1, MODEL.config.context_length + 1), jnp.int32))


def test_meaning_lies_in_the_relative_position_of_vectors(params: Any) -> None:
    """Cosine similarity compares them; a token's nearest neighbour is itself, then what points the same way."""
    table = params["params"]["embedding"]["table"].at[7].set(3 * params["params"]["embedding"]["table"][4])
    ids, cosines = nearest_neighbours(table[:5], table, 2)
    assert ids[:4, 0].tolist() == [0, 1, 2, 3]
    assert sorted(ids[4].tolist()) == [4, 7]
    np.testing.assert_allclose(cosines[4], 1, atol=1e-6)
    assert float(cosine_similarity(table[:1], -table[:1])[0, 0]) == pytest.approx(-1, abs=1e-6)


def test_embeddings_become_contextual() -> None:
    """The same token is alike at layer 0 apart from its position, and differs after one block if its left context
    does.
    """
    model = GPT(tiny(Attention(H)))
    p = random_params(model)
    tokens = jnp.array([[5, 9, 7, 9], [6, 9, 7, 3]])
    _, found = model.apply(p, tokens, capture="**")
    x0 = found["embedding"]
    x1 = x0 + found["blocks/0/attention_change"] + found["blocks/0/mlp_change"]
    np.testing.assert_array_equal(x0[0, 1], x0[0, 3])
    np.testing.assert_array_equal(x0[0, 1], x0[1, 1])
    for other in (x1[0, 3], x1[1, 1]):
        assert np.abs(x1[0, 1] - other).max() > 0.1


# ── a block ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_normalization_acts_on_each_position_before_attention_and_mlp() -> None:
    """Mean ≈ 0 and deviation ≈ 1 before the affine part; permuting positions commutes."""
    norm = make_norm(LayerNorm(scale=False, bias=False), "float32")
    x = 5 + 3 * jax.random.normal(jax.random.key(0), (B, T, C))
    y = norm.apply({}, x)
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(-1), 1, atol=1e-4)
    np.testing.assert_array_equal(norm.apply({}, x[:, ::-1]), y[:, ::-1])


def test_the_residual_pathway_adds_what_the_sublayers_computed(params: Any, taps: Any) -> None:
    """The stream after all blocks is the embedding plus every sublayer's change; zeroed output projections make each
    block the identity.
    """
    total = taps["embedding"] + sum(value for name, value in taps.items() if name.endswith("_change"))
    norm = make_norm(MODEL.config.final_norm, "float32")
    scale = {"params": params["params"]["final_norm"]}
    np.testing.assert_allclose(norm.apply(scale, total), taps["hidden"], atol=1e-5)
    zeroed = map_with_path(lambda path, x: 0 * x if matches(path, ["**/output/*", "**/down/*"]) else x, params)
    hidden = apply(zeroed, TOKENS, method="backbone")
    np.testing.assert_allclose(hidden, norm.apply(scale, taps["embedding"]), atol=1e-5)


def test_q_k_and_v_are_projections_into_h_heads(params: Any, taps: Any) -> None:
    """(B, T, C) → (B, H, T, D), here with the heads' axis third."""
    layer = params["params"]["blocks"]["0"]
    norm = make_norm(MODEL.config.blocks[0].norm, "float32")
    x = norm.apply({"params": layer["attention_norm"]}, taps["embedding"])
    for name, tapped in [("query", "queries"), ("key", "keys"), ("value", "values")]:
        found = taps[f"blocks/0/attention/{tapped}"]
        assert found.shape == (B, T, H, D)
        np.testing.assert_allclose(found.reshape(B, T, C), x @ layer["attention"][name]["kernel"], atol=1e-5)


def test_attention_is_causal_and_scaled_by_the_root_of_d(params: Any, taps: Any) -> None:
    """Rows sum to 1; above the diagonal exactly 0; scores are q·k / √D."""
    p = taps["blocks/1/attention/probabilities"]
    assert p.shape == (B, H, T, T)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)
    np.testing.assert_array_equal(jnp.triu(p, 1), 0.0)
    q, k = (taps[f"blocks/1/attention/{name}"] for name in ("queries", "keys"))
    scores = np.einsum("bthd,bshd->bhts", q, k) / D**0.5
    ratio = np.log(p[..., -1, 1:] / p[..., -1, :-1])
    np.testing.assert_allclose(ratio, scores[..., -1, 1:] - scores[..., -1, :-1], atol=1e-4)


@pytest.mark.parametrize("j", [0, 1, 5, T - 1])
def test_changing_token_j_leaves_the_outputs_before_j_bit_equal(params: Any, j: int) -> None:
    logits, changed = apply(params, TOKENS), apply(params, TOKENS.at[:, j].set(30))
    np.testing.assert_array_equal(changed[:, :j], logits[:, :j])
    assert (np.abs(changed[:, j:] - logits[:, j:]).max(-1) > 1e-3).all()  # and every later one depends on it


def test_unlike_bidirectional_bert(params: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the mask off, a later token changes earlier outputs: the mask alone makes the model autoregressive."""
    kind = type(MODEL.config.blocks[0].attention.mask)
    monkeypatch.setitem(mask.VISIBLE, kind, lambda _, distance, *rest: distance == distance)
    blind = jax.jit(lambda p, tokens: GPT(MODEL.config).apply(p, tokens))
    logits, changed = blind(params, TOKENS), blind(params, TOKENS.at[:, -1].set(30))
    assert (np.abs(changed[:, :-1] - logits[:, :-1]).max(-1) > 1e-4).all()


def test_heads_compute_in_parallel_and_attend_to_different_things(params: Any, taps: Any) -> None:
    """The sublayer equals its heads one by one, concatenated and projected."""
    layer = params["params"]["blocks"]["0"]["attention"]
    q, k, v = (taps[f"blocks/0/attention/{name}"] for name in ("queries", "keys", "values"))
    outputs = []
    for h in range(H):
        scores = np.einsum("btd,bsd->bts", q[:, :, h], k[:, :, h]) / D**0.5
        scores[:, np.triu(np.ones((T, T), bool), 1)] = -np.inf
        p = np.asarray(jax.nn.softmax(scores, axis=-1))
        np.testing.assert_allclose(p, taps["blocks/0/attention/probabilities"][:, h], atol=1e-5)
        outputs.append(p @ v[:, :, h])
    wanted = np.concatenate(outputs, axis=-1) @ layer["output"]["kernel"]
    np.testing.assert_allclose(taps["blocks/0/attention_change"], wanted, atol=1e-5)
    first, second = taps["blocks/0/attention/probabilities"][:, :2].swapaxes(0, 1)
    assert np.abs(first - second).max() > 0.1


def test_keys_and_values_can_be_cached(params: Any) -> None:
    """Prefill and single steps equal the full forward at every position."""
    logits, cache = apply(params, TOKENS[:, :3], cache=init_cache(MODEL.config, B, T))
    steps = [logits]
    for t in range(3, T):
        logits, cache = apply(params, TOKENS[:, t : t + 1], cache=cache)
        steps.append(logits)
    np.testing.assert_allclose(np.concatenate(steps, axis=1), apply(params, TOKENS), atol=1e-5)


# ── sharing keys and values ──────────────────────────────────────────────────────────────────────────────────────────


def grouped(kv_heads: int | None) -> GPT:
    score, bias = Score(qk_norm=LayerNorm()), ("query", "key", "value")
    return GPT(tiny(Attention(H, kv_heads, position=Rope(), score=score, bias=bias)))


def logits_of(model: GPT, params: Any) -> np.ndarray:
    return np.asarray(jax.jit(model.apply)(params, TOKENS))


def repeated(params: Any, kv_heads: int, times: int) -> Any:
    """The parameters with each key and value head `times` times in a row."""

    def repeat(path: str, leaf: jax.Array) -> jax.Array:
        if not matches(path, ["**/key/*", "**/value/*"]):
            return leaf
        heads = leaf.reshape(*leaf.shape[:-1], kv_heads, D)
        return jnp.repeat(heads, times, axis=-2).reshape(*leaf.shape[:-1], -1)

    return map_with_path(repeat, params)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_gqa_and_mqa_are_mha_with_repeated_keys_and_values(kv_heads: int) -> None:
    """MQA (K = 1) and GQA (between) share K and V among H / K neighbouring query heads."""
    model = grouped(kv_heads)
    params = random_params(model)
    kernel = params["params"]["blocks"]["0"]["attention"]["key"]["kernel"]
    assert kernel.shape == (C, kv_heads * D)
    full = repeated(params, kv_heads, H // kv_heads)
    np.testing.assert_allclose(logits_of(model, params), logits_of(grouped(None), full), atol=1e-5)


def test_gqa_with_k_equal_to_h_is_mha() -> None:
    params = random_params(grouped(None))
    np.testing.assert_array_equal(logits_of(grouped(H), params), logits_of(grouped(None), params))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_a_caches_bytes_scale_with_k_over_h(kv_heads: int) -> None:
    def size(model: GPT) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(init_cache(model.config, B, 16).layers))

    assert size(grouped(kv_heads)) * H == size(grouped(None)) * kv_heads
    assert size(grouped(None)) == 2 * 2 * B * H * 16 * D * 4  # keys and values, layers, …, 4 bytes a number


# ── MLP, blocks, head ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_mlp_works_on_each_position_by_itself(params: Any) -> None:
    """Applying it position by position equals the batch, bit for bit in what one position can influence."""
    mlp_only = GPT(tiny(Attention(H)))
    p = random_params(mlp_only)
    no_attention = map_with_path(lambda path, x: 0 * x if matches(path, ["**/output/*"]) else x, p)
    together = mlp_only.apply(no_attention, TOKENS)
    one_by_one = [mlp_only.apply(no_attention, TOKENS[:, t : t + 1]) for t in range(T)]
    np.testing.assert_allclose(together, np.concatenate(one_by_one, axis=1), atol=1e-5)
    changed = mlp_only.apply(no_attention, TOKENS.at[:, 2].set(30))
    same = [t for t in range(T) if t != 2]
    np.testing.assert_array_equal(changed[:, same], together[:, same])
    assert not np.array_equal(changed[:, 2], together[:, 2])


def test_blocks_repeat_from_t_by_c_to_t_by_c(taps: Any) -> None:
    """Scanned = looped is in `test_conformance`; here: every block gives what it takes."""
    for layer in range(MODEL.config.layers):
        for name in ("attention_change", "mlp_change"):
            assert taps[f"blocks/{layer}/{name}"].shape == taps["embedding"].shape == (B, T, C)


def test_the_head_scores_every_token_and_the_backbone_serves_another_head(params: Any) -> None:
    """(T, C) → (T, V); hidden states from `backbone` feed any head."""
    hidden = apply(params, TOKENS, method="backbone")
    logits = apply(params, TOKENS)
    assert hidden.shape == (B, T, C) and logits.shape == (B, T, VOCABULARY)
    np.testing.assert_allclose(hidden @ params["params"]["embedding"]["table"].T, logits, atol=1e-5)
    classifier = jnp.ones((C, 3))
    assert (hidden @ classifier).shape == (B, T, 3)


# ── logits → tokens ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_softmax_lies_in_0_to_1_sums_to_1_and_keeps_the_order(size: float) -> None:
    """Shift-invariant, and finite at logits of ±1e4."""
    logits = size * jnp.array([[-1.0, 0.25, 1.0, 0.5]])
    p = Sampler().probabilities(logits)
    assert np.isfinite(p).all() and (p >= 0).all() and (p <= 1).all()
    np.testing.assert_allclose(p.sum(), 1, atol=1e-6)
    order = np.asarray(p[0])[np.argsort(logits[0])]
    assert (np.diff(order) >= 0).all()
    np.testing.assert_allclose(Sampler().probabilities(logits + 7.0), p, atol=1e-6)
    assert np.isfinite(cross_entropy(logits, jnp.array([0]))[0]).all()


def test_position_t_predicts_token_t_plus_1(params: Any) -> None:
    """The loss compares logits[:, :-1] with ids[:, 1:], and a stream's rows hold the targets one step on."""
    logits = apply(params, TOKENS)
    nll, _, _ = cross_entropy(logits[:, :-1], TOKENS[:, 1:])
    logp = np.asarray(jax.nn.log_softmax(logits))
    wanted = [[-logp[b, t, int(TOKENS[b, t + 1])] for t in range(T - 1)] for b in range(B)]
    np.testing.assert_allclose(nll, wanted, atol=1e-5)
    stream = Stream(np.arange(20, dtype=np.uint8), np.array([0]), ended=True)
    row = stream.cut(np.array([3]), 5, segmented=False)
    np.testing.assert_array_equal(row.tokens, [[3, 4, 5, 6, 7]])
    np.testing.assert_array_equal(row.targets, [[4, 5, 6, 7, 8]])


def test_temperature_sharpens_towards_argmax_and_smooths_as_it_rises() -> None:
    """τ → 0 is argmax; entropy does not fall as τ rises; τ = 1 is the identity."""
    logits = jax.random.normal(jax.random.key(0), (3, 16))

    def entropy(temperature: float) -> np.ndarray:
        p = np.asarray(Sampler(temperature).probabilities(logits))
        return -(p * np.log(np.maximum(p, 1e-30))).sum(-1)

    entropies = [entropy(t) for t in (0.01, 0.3, 1.0, 2.0, 10.0)]
    assert (np.diff(entropies, axis=0) > 0).all()
    np.testing.assert_allclose(Sampler(1.0).probabilities(logits), jax.nn.softmax(logits), atol=1e-7)
    keys = jax.random.split(jax.random.key(1), 3)
    for sampler in (Sampler(0.0), Sampler(1e-4), Greedy()):
        np.testing.assert_array_equal(sampler(keys, logits), logits.argmax(-1))


def test_the_loop_is_forward_choose_append_again(params: Any) -> None:
    """Four pure functions, callable one by one; the same key gives the same text."""
    prompt, new = [3, 1, 4], 4
    tokens, cache = jnp.array([prompt]), init_cache(MODEL.config, 1, len(prompt) + new)
    state, no_stop = stages.init_state(tokens, new), jnp.zeros(0, jnp.int32)
    fed = tokens
    while bool(stages.is_unfinished(state, new)):
        logits, cache = stages.forward(MODEL, params, fed, cache)
        ids, logprobs = stages.choose(Greedy(), jax.random.split(jax.random.key(0), 1), logits)
        state = stages.append(state, ids, logprobs, no_stop)
        fed = ids[:, None]
    by_hand = state.tokens[0, len(prompt) :]
    options = {"key": jax.random.key(0), "max_new_tokens": new}
    np.testing.assert_array_equal(generate(MODEL, params, [prompt], sampler=Greedy(), **options).tokens[0], by_hand)
    a, b = (generate(MODEL, params, [prompt], sampler=Sampler(), **options).tokens for _ in range(2))
    np.testing.assert_array_equal(a, b)
    full = prompt[:]
    for token in by_hand.tolist():  # and without a cache, a forward of everything for each token
        assert int(MODEL.apply(params, jnp.array([full]))[0, -1].argmax()) == token
        full.append(token)
