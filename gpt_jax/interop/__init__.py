"""Reading and writing published models: one table per family, in which every tensor has its place."""

from gpt_jax.interop.hf import load_pretrained, save_pretrained

__all__ = ["load_pretrained", "save_pretrained"]
