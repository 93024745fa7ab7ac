"""All families of published models by `model_type`, in the order in which `save_pretrained` tries them."""

from gpt_jax.interop.families import (
    alibi,
    apertus,
    cohere,
    falcon,
    gemma,
    glm,
    gpt2,
    gpt_neox,
    gptj,
    granite,
    latent,
    llama,
    llama_variants,
    olmo,
    opt,
    phi,
    qwen,
    starcoder2,
)
from gpt_jax.interop.family import Family

MODULES = (
    llama,
    qwen,
    granite,
    olmo,
    gemma,
    cohere,
    glm,
    apertus,
    latent,
    llama_variants,
    phi,
    starcoder2,
    gpt2,
    gptj,
    gpt_neox,
    opt,
    alibi,
    falcon,
)
FAMILIES: dict[str, Family] = {family.model_type: family for module in MODULES for family in module.FAMILIES}
