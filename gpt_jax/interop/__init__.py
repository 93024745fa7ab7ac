"""Published models in and out: one table for each family, every tensor accounted for."""

from gpt_jax.interop.hf import load_pretrained, save_pretrained

__all__ = ["load_pretrained", "save_pretrained"]
