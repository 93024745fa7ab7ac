"""The attention of gpt-oss (arXiv:2508.10925), whose experts gpt_jax has none of: sinks, biases, YaRN without whole
pairs, windows.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import ModelConfig
from gpt_jax.config import PROJECTIONS, Attention, BlockConfig, Causal, Rope, Score, Window, Yarn
from gpt_jax.model.attention import MultiHeadAttention
from gpt_jax.model.gpt import make_row
from tests.interop.make_gpt_oss import FILE


@pytest.mark.parametrize("layer, mask", [(0, Window(5)), (1, Causal())])
def test_its_attention_is_that_of_transformers(layer: int, mask: Window | Causal) -> None:
    with np.load(FILE) as file:
        theirs = {
            name.removeprefix(f"{layer}/"): jnp.asarray(file[name])
            for name in file.files
            if name.startswith(f"{layer}/")
        }
        x = file["x"]
    rope = Rope(100.0, scaling=Yarn(factor=4.0, original_length=8, truncate=False))
    config = Attention(4, 2, 8, mask=mask, position=rope, score=Score(normalizer="sinks"), bias=PROJECTIONS)
    model = ModelConfig(vocab_size=5, context_length=32, width=24, blocks=(BlockConfig(config, None),))
    params = {
        ours: {"kernel": theirs[f"{letter}_proj.weight"].T, "bias": theirs[f"{letter}_proj.bias"]}
        for ours, letter in [("query", "q"), ("key", "k"), ("value", "v"), ("output", "o")]
    }
    params["sinks"] = {"logits": theirs["sinks"]}
    row = make_row(jnp.zeros(x.shape[:2], jnp.int32), None, None, None, None)
    module = MultiHeadAttention(config, model, 1.0)
    ours, _, _ = module.apply({"params": params}, jnp.asarray(x), row, None, {}, False)
    np.testing.assert_allclose(ours, theirs["output"], atol=1e-5)
