"""gpt_jax: GPT-style decoders in functional JAX/Flax, for claims about attention that can be believed. The names here
are the public ones.
"""

from gpt_jax.config import ModelConfig
from gpt_jax.decoding.generate import Generation, generate, stream
from gpt_jax.decoding.sampling import Greedy, Sampler
from gpt_jax.interop.hf import load_pretrained, save_pretrained
from gpt_jax.interop.peft import load_adapter, save_adapter
from gpt_jax.model.cache import init_cache
from gpt_jax.model.gpt import GPT
from gpt_jax.model.merge import merge_adapter
from gpt_jax.model.mixer import Mixer
from gpt_jax.model.registry import register_attention
from gpt_jax.runs.load import load_run
from gpt_jax.runs.together import train_together
from gpt_jax.runs.train import train

__all__ = [
    "GPT",
    "Generation",
    "Greedy",
    "Mixer",
    "ModelConfig",
    "Sampler",
    "generate",
    "init_cache",
    "load_adapter",
    "load_pretrained",
    "load_run",
    "merge_adapter",
    "register_attention",
    "save_adapter",
    "save_pretrained",
    "stream",
    "train",
    "train_together",
]
