"""Tiny random models of published families, made by Hugging Face's transformers apart from this project: read as a user
reads them, they have its logits and go on with its tokens, in a whole row and from a cache of each variant's own kind.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import Greedy, generate, load_pretrained

ORACLES = [
    "bloom", "codegen", "cohere", "cohere2", "diffllama", "exaone4", "falcon_40b_style", "falcon_7b_style",
    "falcon_rw_style", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox",
    "gptj", "granite", "llama", "llama_rope_llama3", "llama_rope_yarn", "mistral", "mpt", "nanochat", "nemotron",
    "olmo", "olmo2", "olmo3", "opt", "phi", "phi3", "qwen2", "qwen3", "smollm3", "stablelm", "starcoder2", "xglm",
    "youtu",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*ALiBi twice")
@pytest.mark.parametrize("name", ORACLES)
def test_logits_and_greedy_tokens_are_hugging_faces(name: str, shared: Path) -> None:
    folder = shared / "oracles" / name
    if not folder.is_dir():
        pytest.skip(f"needs the oracle {folder}")
    model, params, _ = load_pretrained(folder)
    ids, wanted, whole = (np.load(folder / f"{name}.npy") for name in ("input_ids", "logits", "generated"))
    prompt = ids.shape[1]
    logits = jax.jit(model.apply)(params, jnp.asarray(whole, jnp.int32))
    np.testing.assert_allclose(logits[:, :prompt], wanted, atol=1e-4)
    np.testing.assert_array_equal(logits[:, prompt - 1 : -1].argmax(-1), whole[:, prompt:])
    new = whole.shape[1] - prompt
    ours = generate(model, params, ids, key=jax.random.key(0), max_new_tokens=new, sampler=Greedy())
    np.testing.assert_array_equal(ours.tokens, whole[:, prompt:])
