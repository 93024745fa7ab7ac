"""The records of a walk through a model: they are the values that the model taps, and they add up."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT, init_cache
from gpt_jax.analysis.walkthrough import Walkthrough, walk_through
from gpt_jax.analysis.walkthrough_layer import Limits, read_layers
from gpt_jax.analysis.walkthrough_rule import rules_of
from gpt_jax.analysis.walkthrough_token import tokens_of, visible
from gpt_jax.config import (
    Alibi,
    Attention,
    Average,
    BlockConfig,
    Chunk,
    Delta,
    Differential,
    ModelConfig,
    Score,
    T5Bias,
)
from gpt_jax.config.errors import UserError
from gpt_jax.data.tokenizer import BpeTokenizer, ByteTokenizer
from gpt_jax.decoding.generate import generate
from gpt_jax.decoding.sampling import Greedy
from tests.analysis.walked import NEW, apply, model, prompt, walk
from tests.tiny import random_params


def whole() -> jax.Array:
    return jnp.array([[token.id for token in walk().tokens]])


def test_the_numbers_are_those_of_the_model() -> None:
    walked = walk()
    logits, captured = apply(whole(), ("embedding", "hidden", "blocks/**"))
    P = len(prompt())
    np.testing.assert_array_equal(walked.predictions.steps, logits[0, P - 1 :])
    np.testing.assert_array_equal(walked.hidden, captured["hidden"][0])
    np.testing.assert_array_equal(walked.embedding.output, captured["embedding"][0])
    seen = 0
    for layer in walked.layers:
        for name, value in layer.values.items():
            full = captured.get(f"blocks/{layer.index}/{name}")
            if full is None:  # what the layer does not tap itself
                assert name in ("input", "attention/effective", "attention/keys", "attention/values")
                continue
            full = np.asarray(full[0])
            heads_first = name.rpartition("/")[2] in ("scores", "logits", "probabilities", "heads", "log_decay")
            by_head = name.startswith("attention/") and full.ndim >= 2 and not heads_first and "latents" not in name
            if by_head:
                full = np.moveaxis(full, 1, 0)
            np.testing.assert_array_equal(value, full.reshape(value.shape), err_msg=name)
            seen += 1
    assert seen > 80
    np.testing.assert_array_equal(walked.layers[3].values["input"], captured["blocks/2/output"][0])


def test_texts_of_similar_lengths_share_programs_and_keep_their_numbers() -> None:
    """Nothing is compiled for the second text; its numbers are those of the text alone, to rounding."""
    blocks = tuple(BlockConfig(mixer, None) for mixer in (Attention(2, position=Alibi()), Delta(2, head_width=4)))
    made = GPT(ModelConfig(vocab_size=ByteTokenizer().vocab_size, context_length=64, width=8, blocks=blocks))
    params, compiled = random_params(made), []

    def walked(ids: bytes, shares: bool = True) -> Walkthrough:
        options = {"name": "shared", "new_tokens": 3, "shares_programs": shares}
        return walk_through(made, params, ByteTokenizer(), list(ids), **options)

    def heard(event: str, seconds: float, **_: str | int) -> None:
        compiled.append(event)

    walked(b"a first text, a bit longer")
    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        second = walked(b"and the second one")
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    assert [event for event in compiled if "backend_compile" in event] == []
    alone = walked(b"and the second one", shares=False)
    assert [token.id for token in second.tokens] == [token.id for token in alone.tokens]
    np.testing.assert_array_equal(second.embedding.neighbours, alone.embedding.neighbours)
    for name in ("hidden", "predictions.steps", "predictions.log_z", "embedding.output", "lens.log_probabilities"):
        of_both = [operator.attrgetter(name)(walk) for walk in (second, alone)]
        np.testing.assert_allclose(*of_both, rtol=1e-3, atol=1e-4, err_msg=name)
    for one, other in zip(second.layers, alone.layers, strict=True):
        assert one.values.keys() == other.values.keys()
        for name, value in one.values.items():
            np.testing.assert_allclose(value, other.values[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_weights_times_values_are_the_heads_and_factors_times_dots_the_scores() -> None:
    kinds = []
    for layer in walk().layers:
        assert layer.weights is not None
        kinds.append(layer.weights.removeprefix("attention/"))
        values = layer.values["attention/values"][list(layer.keys_of)]
        mixed = np.einsum("hts,hse->hte", layer.values[layer.weights], values)
        np.testing.assert_allclose(mixed, layer.values["attention/heads"], atol=2e-5)
        if layer.factor is not None:
            q, k = layer.values["attention/queries"], layer.values["attention/keys"]
            dots = np.einsum("htd,hsd->hts", q[list(layer.queries_of)], k[list(layer.keys_of)])
            scores = layer.factor[:, :, None] * dots
            np.testing.assert_allclose(scores, layer.values["attention/scores"], atol=2e-5)
    assert kinds == ["probabilities"] * 4 + ["effective"] * 2
    assert walk().layers[1].keys_from == 0 and walk().layers[0].keys_of == (0, 0, 1, 1)


def test_the_continuation_is_what_generate_gives_and_the_cache_is_the_models_own() -> None:
    walked, (made, params) = walk(), model()
    done = generate(made, params, [prompt()], key=jax.random.key(0), max_new_tokens=NEW, sampler=Greedy())
    assert [token.id for token in walked.tokens[-NEW:]] == done.tokens[0].tolist() and walked.new == NEW
    for step in (0, NEW):
        cache = init_cache(made.config, 1, len(prompt()) + step)
        assert sum(entry.bytes[step] for entry in walked.cache) == sum(x.nbytes for x in jax.tree.leaves(cache.layers))
    kinds = [{entry.kind for entry in walked.cache if entry.layer == layer} for layer in range(6)]
    assert kinds == [{"slots"}, set(), {"ring"}, {"slots"}, {"state"}, {"state"}]
    assert {entry.slots for entry in walked.cache if entry.kind == "ring"} == {5}


def test_large_models_and_texts_are_sampled_down_and_it_is_said() -> None:
    (made, params), limits = model(), Limits(positions=8, layers=2, heads=3, channels=4)
    layers, notes = read_layers(made, params, whole(), whole().shape[1], whole().shape[1] - 8, limits, {})
    assert [layer.index for layer in layers] == [0, 5]
    full = walk().layers[0].values["attention/probabilities"]
    np.testing.assert_allclose(layers[0].values["attention/probabilities"], full[:3, -8:, -8:], atol=1e-6)
    assert layers[0].values["attention/keys"].shape == (2, 8, 2) and layers[0].channels == (0, 2, 4, 6)
    kept = walk().layers[0].values["attention_norm/output"][-8:, ::2]
    np.testing.assert_allclose(layers[0].values["attention_norm/output"], kept, atol=1e-6)
    assert notes == ["Of 6 layers, 2 are shown: 0, 5.", "Of 4 heads of a layer, the first 3 are shown."]


def test_impossible_requests_are_refused_in_a_sentence() -> None:
    made, params = model()
    for ids, new, message in (([], 1, "has 0"), ([1] * 65, 1, "has 65"), ([1], 64, "from 0 to 63 new tokens")):
        with pytest.raises(UserError, match=message):
            walk_through(made, params, ByteTokenizer(), ids, name="", new_tokens=new)


def test_the_rules_of_a_layer_are_those_of_its_configuration() -> None:
    score = Score(softcap=5.0, normalizer="sinks")
    mixers = (
        Attention(4, 1, mask=Chunk(3), position=Alibi(), score=score, forget_gate=True),
        Attention(4, 4, score=Score(normalizer="sigmoid"), position=T5Bias()),
        Differential(4),
        Average(4),
    )
    blocks = tuple(BlockConfig(mixer, None, residual="sandwich") for mixer in mixers)
    config = ModelConfig(vocab_size=8, context_length=8, width=8, blocks=blocks)
    first, second, third, last = (rules_of(config, layer) for layer in range(4))
    assert first.logit == "logit = 5 · tanh(score / 5) − slope · distance + Σ log forget, −∞ where masked"
    assert "exp(sink)" in first.weight and "chunk of 3" in first.mask and "share one head" in first.about
    assert second.logit == "logit = score + bias[distance] + log(1 / context), −∞ where masked"
    assert "exp(−logit)" in second.weight and "4 query heads has keys and values of its own" in second.about
    assert "2 pairs" in third.about and "normed" in third.output
    assert (
        last.score is None
        and last.logit is None
        and last.mlp is None
        and "x + norm(sublayer(norm(x)))" == last.residual
    )


def test_tokens_show_their_bytes_merges_and_what_is_invisible() -> None:
    tokenizer = BpeTokenizer.train(["aaabdaaabac"] * 2, 259, "gpt2")
    (token,) = tokens_of(tokenizer, [258])
    assert token.bytes == tuple(tokenizer.decode_bytes([258])) and token.merges is not None
    assert token.merges[0] == tuple(token.text) and token.merges[-1] == (token.text,)
    assert [len(step) for step in token.merges] == list(range(len(token.text), 0, -1))
    assert tokens_of(ByteTokenizer(), [0xE2, 400])[0].text == "E2" and tokens_of(ByteTokenizer(), [400])[0].bytes == ()
    assert visible("a\n\u202e\u200b é".encode()) == "a⏎U+202EU+200B␣é"
