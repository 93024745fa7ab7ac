"""The families of published models, by the `model_type` of their config.json, in the order in which `save_pretrained`
tries them.
"""

from gpt_jax.interop.families import llama
from gpt_jax.interop.family import Family

FAMILIES: dict[str, Family] = {family.model_type: family for module in (llama,) for family in module.FAMILIES}
