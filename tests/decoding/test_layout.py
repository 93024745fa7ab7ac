"""Parameters laid out for decoding give the model's own logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.config import Attention, BlockConfig, GatedMlp, Head, ModelConfig, Rope
from gpt_jax.decoding.generate import generate
from gpt_jax.decoding.layout import with_untied_head
from gpt_jax.decoding.sampling import Greedy
from gpt_jax.model.gpt import GPT
from tests.tiny import apply, random_params

BLOCK = BlockConfig(Attention(heads=2, position=Rope()), GatedMlp(32))


@pytest.mark.parametrize("head", [Head(), Head(bias=True, scale=0.5, softcap=3.0), Head(tied=False)])
def test_an_untied_copy_of_the_head_gives_the_same_logits_and_token(head: Head) -> None:
    model = GPT(ModelConfig(61, 32, 16, (BLOCK,) * 2, head=head))
    tokens = jnp.arange(12)[None] % 61
    params = random_params(model)
    before = jax.tree.map(np.asarray, params)
    laid, moved = with_untied_head(model, params)
    assert not laid.config.head.tied
    wanted = np.asarray(apply(model, params, tokens))
    np.testing.assert_allclose(apply(laid, moved, tokens), wanted, atol=1e-5)
    made = generate(model, params, np.asarray(tokens), key=jax.random.key(0), max_new_tokens=1, sampler=Greedy())
    assert made.tokens[0, 0] == wanted[0, -1].argmax()
    np.testing.assert_allclose(made.logprobs[0, 0], jax.nn.log_softmax(wanted[0, -1]).max(), atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, params, before)
