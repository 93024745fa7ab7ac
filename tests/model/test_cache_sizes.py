"""What a layer caches follows the closed form of its kind: formulas against the real arrays."""

from collections.abc import Callable
from typing import Any

import jax
import pytest

from gpt_jax import init_cache
from gpt_jax.analysis.cost import kv_bytes_per_token
from gpt_jax.config import (
    Alibi,
    Attention,
    AttentionConfig,
    Average,
    BlockConfig,
    Causal,
    Chunk,
    Delta,
    Differential,
    FromKey,
    Latent,
    LinearAttention,
    MaskConfig,
    Prefix,
    Projected,
    Rope,
    Shared,
    Window,
)
from tests.tiny import tiny

C, H, K, D, E, W = 8, 4, 2, 6, 10, 5


def keys_and_values(mask: MaskConfig, value_width: int | None = None) -> AttentionConfig:
    return Attention(H, K, D, mask, Rope(), value=Projected(value_width))


# kind → its configuration, and elements that a layer keeps of a text of T tokens
KINDS: dict[str, tuple[AttentionConfig, Callable[[int], int]]] = {
    "full: 2·K·D a token": (keys_and_values(Causal()), lambda T: 2 * K * D * T),
    "prefix: as full": (keys_and_values(Prefix()), lambda T: 2 * K * D * T),
    "multi-query: 2·D": (Attention(H, 1, D, position=Alibi()), lambda T: 2 * D * T),
    "wide values: K·(D + E)": (keys_and_values(Causal(), E), lambda T: K * (D + E) * T),
    "window: of min(T, W) tokens": (keys_and_values(Window(W)), lambda T: 2 * K * D * min(T, W)),
    "chunk: of min(T, W) tokens": (keys_and_values(Chunk(W)), lambda T: 2 * K * D * min(T, W)),
    "values from keys: K·D": (Attention(H, K, D, position=Rope(), value=FromKey()), lambda T: K * D * T),
    "differential: 2·K·D": (Differential(H, K, D), lambda T: 2 * K * D * T),
    "forgetting: 2·K·D, H sums, and one of all": (
        Attention(H, K, D, forget_gate=True),
        lambda T: 2 * K * D * T + H * T + H,
    ),
    "latent: d_c + d_r": (Latent(H, 7, D, 4, value_width=E), lambda T: (7 + 4) * T),
    "latent in a window": (Latent(H, 7, D, 4, mask=Window(W)), lambda T: (7 + 4) * min(T, W)),
    "linear: H·D·(E + 1), however long": (LinearAttention(H, D, E), lambda T: H * D * (E + 1)),
    "delta: H·D·E and the convolutions' past": (
        Delta(H, head_width=D, value_width=E),
        lambda T: H * D * E + 3 * H * (2 * D + E),
    ),
    "average: E": (Average(E), lambda T: E),
}


@pytest.mark.parametrize("length", [1, 4, 5, 6, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layers_cache_has_the_size_of_its_closed_form(kind: str, length: int) -> None:
    attention, elements = KINDS[kind]
    model = tiny(attention, layers=2)
    cache = init_cache(model, 3, length)
    real = sum(leaf.nbytes for leaf in jax.tree.leaves(cache.layers))
    assert real == 2 * 3 * elements(length) * 4  # layers, rows, bytes of a float32
    assert kv_bytes_per_token(model, length) == 2 * elements(length) * 4 / length


def test_layers_that_share_keys_cache_them_once_and_half_precision_halves_them() -> None:
    own = Attention(H, K, D)
    blocks: Any = (BlockConfig(own, None), BlockConfig(Attention(H, K, D, value=Shared()), None))
    assert kv_bytes_per_token(tiny(blocks=blocks), 8) == kv_bytes_per_token(tiny(blocks=blocks[:1]), 8)
    assert kv_bytes_per_token(tiny(blocks=blocks[:1], dtype="bfloat16"), 8) == 2 * K * D * 2
    # A sum of logarithms that rounds would forget by itself: it stays float32.
    forgetting = tiny(Attention(H, K, D, forget_gate=True), layers=1, dtype="bfloat16")
    assert kv_bytes_per_token(forgetting, 8) == 2 * K * D * 2 + H * 4 + H * 4 / 8
