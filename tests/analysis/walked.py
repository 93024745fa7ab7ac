"""One text through one small model with a layer of every kind of mixer; shared by the tests of its records and of its
page.
"""

from functools import cache
from typing import Any

import jax
from jaxtyping import Array

from gpt_jax import GPT
from gpt_jax.analysis.walkthrough import Walkthrough, walk_through
from gpt_jax.config import (
    Attention,
    BlockConfig,
    Delta,
    GatedMlp,
    Latent,
    Learned,
    LinearAttention,
    ModelConfig,
    Rope,
    Shared,
    Window,
)
from gpt_jax.config.model import Embedding
from gpt_jax.data.tokenizer import ByteTokenizer
from tests.tiny import random_params

PROMPT = "<script>alert(1)</script>\n🙂\u202eשלום"
MIXERS = (
    Attention(4, kv_heads=2, position=Rope()),
    Attention(4, kv_heads=2, position=Rope(), value=Shared()),
    Attention(4, kv_heads=2, mask=Window(5)),
    Latent(2, rank=4, head_width=4, rotary_width=2),
    LinearAttention(2, head_width=4),
    Delta(2, head_width=4),
)
NEW = 5


@cache
def model() -> tuple[GPT, Any]:
    blocks = tuple(BlockConfig(mixer, GatedMlp(12)) for mixer in MIXERS)
    config = ModelConfig(
        vocab_size=ByteTokenizer().vocab_size,
        context_length=64,
        width=8,
        blocks=blocks,
        embedding=Embedding(position=Learned()),
    )
    made = GPT(config)
    return made, random_params(made)


def prompt() -> list[int]:
    return ByteTokenizer().encode(PROMPT)


@cache
def walk() -> Walkthrough:
    return walk_through(*model(), ByteTokenizer(), prompt(), name="every mixer", new_tokens=NEW)


def apply(tokens: Array, capture: tuple[str, ...]) -> Any:
    made, params = model()
    return jax.jit(lambda p, x: made.apply(p, x, capture=capture))(params, tokens)
