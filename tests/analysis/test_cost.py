"""Analytic parameters, FLOPs and cache bytes against XLA's count of the unrolled program and real arrays."""

import dataclasses
from fractions import Fraction
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT, init_cache
from gpt_jax.analysis.cost import (
    count_parameters,
    forward_flops_per_token,
    kv_bytes_per_token,
    parameter_table,
    peak_flops,
    training_flops_per_token,
)
from gpt_jax.config import (
    PROJECTIONS,
    Attention,
    AttentionConfig,
    BlockConfig,
    Chunk,
    Differential,
    Embedding,
    GatedMlp,
    Head,
    Latent,
    LayerNorm,
    Learned,
    Mlp,
    ModelConfig,
    Projected,
    Window,
    pattern,
)
from gpt_jax.model.mask import Side, allowed, keys_per_query, spans
from gpt_jax.model.registry import ATTENTIONS, mixer_of
from gpt_jax.model.shapes import parameter_shapes
from gpt_jax.training.loss import cross_entropy
from tests.tiny import tiny

GPT2_BLOCK = BlockConfig(Attention(12, bias=PROJECTIONS), Mlp(3072, bias=True), norm=LayerNorm())
GPT2 = ModelConfig(50257, 1024, 768, (GPT2_BLOCK,) * 12, Embedding(Learned()), LayerNorm())
# Large enough that the products outweigh what is counted as nothing (norms, softmax, activations).
WIDE = ModelConfig(512, 64, 256, (BlockConfig(Attention(4, kv_heads=2), GatedMlp(512)),) * 2)


def test_gpt2_has_its_published_size():
    total, rest = count_parameters(GPT2)
    assert total == 124_439_808
    assert rest == total - 50257 * 768 - 1024 * 768
    untied = dataclasses.replace(GPT2, head=Head(tied=False))
    assert count_parameters(untied) == (total + 50257 * 768, rest + 50257 * 768)


@pytest.mark.parametrize("scan", [False, True])
def test_the_table_adds_up_and_joins_like_layers(scan):
    attention = Attention(2, head_width=4)
    blocks = pattern("ABAB", A=BlockConfig(attention, Mlp(12)), B=BlockConfig(attention, Mlp(20)))
    config = dataclasses.replace(tiny(), blocks=blocks, scan=scan)
    params = GPT(config).init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    table = parameter_table(params)
    assert table == parameter_table(parameter_shapes(config))
    assert sum(row.count for row in table) == sum(leaf.size for leaf in jax.tree.leaves(params))
    rows = {(row.path, row.shape): row.layers for row in table}
    assert rows["blocks/*/attention/query/kernel", (8, 8)] == 4
    assert rows["blocks/*/mlp/up/kernel", (8, 12)] == rows["blocks/*/mlp/up/kernel", (8, 20)] == 2
    assert rows["embedding/table", (32, 8)] == 1


def xla_flops(function, *args):
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


def with_blocks(**blocks):
    """One layer for each letter, of attention over 96 tokens, in two spans of queries."""
    layers = pattern("".join(blocks), **{letter: BlockConfig(a, Mlp(1024)) for letter, a in blocks.items()})
    return dataclasses.replace(WIDE, blocks=layers, context_length=96)


def hidden_flops(config, T):
    """Per token, what the einsum computes of pairs that the mask hides: exactly what `spans` leaves in beyond them."""
    total = 0
    for block in config.blocks:
        a = block.attention
        computed = sum(len(range(T)[q]) * len(range(T)[k]) for q, k in spans(a.mask, T))
        side = [Side(jnp.arange(T), jnp.arange(T)[None])] * 2
        seen = int(np.asarray(allowed(a.mask, *side)).sum())
        assert keys_per_query(a.mask, T) * T == seen
        total += mixer_of(a).mixing_flops(a, config, T) * Fraction(computed - seen, seen)
    return float(total)


@pytest.mark.parametrize(
    "config",
    [
        WIDE,
        dataclasses.replace(WIDE, head=Head(tied=False)),
        dataclasses.replace(WIDE, blocks=(BlockConfig(Attention(4), None),) * 3),
        with_blocks(A=Attention(4, head_width=32, mask=Window(16)), B=Attention(4, kv_heads=1)),
        with_blocks(A=Attention(4, mask=Chunk(40), value=Projected(96))),
        with_blocks(A=Differential(4, kv_heads=2)),
        with_blocks(A=Latent(4, 64, 48, 16, mask=Window(30))),
    ],
    ids=["gqa", "untied", "attention-only", "window:full", "chunk", "differential", "latent"],
)
def test_forward_flops_are_what_xla_counts_for_the_unrolled_model(config):
    """Less the pairs that the kernel computes and the mask hides, which are counted here by hand."""
    T = config.context_length
    tokens = jax.ShapeDtypeStruct((2, T), jnp.int32)
    counted = xla_flops(GPT(config).apply, parameter_shapes(config), tokens) / tokens.size
    computed = forward_flops_per_token(config, T) + hidden_flops(config, T)
    assert computed == pytest.approx(counted, rel=0.04)
    assert computed < counted


def test_training_flops_are_what_xla_counts_for_the_unrolled_model():
    tokens = jax.ShapeDtypeStruct((2, 64), jnp.int32)

    def loss(params, tokens):
        return cross_entropy(GPT(WIDE).apply(params, tokens), tokens)[0].mean()

    counted = xla_flops(jax.grad(loss), parameter_shapes(WIDE), tokens) / tokens.size
    computed = training_flops_per_token(WIDE, 64) + 3 * hidden_flops(WIDE, 64)
    assert computed == pytest.approx(counted, rel=0.06)


def test_flops_follow_the_customary_estimate():
    """6·N, and 12·L·C for each key that a query meets."""
    _, rest = count_parameters(GPT2)
    products = 6 * (rest + 50257 * 768)
    assert training_flops_per_token(GPT2, 1024) == pytest.approx(products + 12 * 12 * 768 * 1025 / 2, rel=2e-3)
    local = BlockConfig(Attention(12, bias=PROJECTIONS, mask=Window(128)), Mlp(3072, bias=True), norm=LayerNorm())
    mixed = dataclasses.replace(GPT2, blocks=pattern("LLG" * 4, L=local, G=GPT2_BLOCK))
    keys = (8 * (128 * 129 / 2 + 896 * 128) / 1024 + 4 * 1025 / 2) / 12
    assert training_flops_per_token(mixed, 1024) == pytest.approx(products + 12 * 12 * 768 * keys, rel=2e-3)


def test_scanning_changes_no_cost():
    scanned = dataclasses.replace(WIDE, scan=True)
    assert forward_flops_per_token(scanned, 64) == forward_flops_per_token(WIDE, 64)
    assert count_parameters(scanned) == count_parameters(WIDE)


def test_every_attention_has_its_flops():
    assert set(ATTENTIONS) == {c for c in AttentionConfig.choices.values() if "gpt_jax" in c.__module__}


def test_cache_bytes_are_those_of_the_cache():
    layer = 2 * 8 * 12 * 64 * 4 // 8  # keys and values, 12 heads of width 64, float32
    assert kv_bytes_per_token(GPT2, 1024) == 12 * layer
    shared = dataclasses.replace(
        GPT2, blocks=(dataclasses.replace(GPT2_BLOCK, attention=Attention(12, kv_heads=3)),) * 12
    )
    assert kv_bytes_per_token(shared, 1024) == 3 * layer
    assert kv_bytes_per_token(dataclasses.replace(GPT2, dtype="bfloat16"), 1024) == 6 * layer
    local = dataclasses.replace(GPT2_BLOCK, attention=Attention(12, mask=Window(256)))
    mixed = dataclasses.replace(GPT2, blocks=(local, GPT2_BLOCK) * 6)
    assert kv_bytes_per_token(mixed, 1024) == (6 + 6 / 4) * layer
    layers = init_cache(mixed, 1, 1024).layers
    assert kv_bytes_per_token(mixed, 1024) == sum(np.asarray(x).nbytes for x in jax.tree.leaves(layers)) / 1024


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5e", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA L4", 121),
        ("Tesla T4", 65),
        ("NVIDIA L40S", None),
        ("NVIDIA T400", None),
        ("cpu", None),
    ],
)
def test_peaks_of_known_devices(kind, tera):
    peak = peak_flops(SimpleNamespace(device_kind=kind))
    assert peak is None if tera is None else peak == tera * 1e12
