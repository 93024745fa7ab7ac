"""RoPE in older files and in newer ones: the same rotation, and the one that transformers makes of it."""

import json
from typing import Any

import pytest

from gpt_jax.interop.families import FAMILIES
from gpt_jax.interop.normal import normal_form
from tests.interop.test_families import needs_transformers

SIZES: dict[str, Any] = {
    "vocab_size": 33,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
LONG = {"short_factor": [1.0, 1.0, 1.5, 2.0], "long_factor": [1.0, 2.0, 3.0, 4.0]}
OLD: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"rope_theta": 500000.0}),
    ("llama", {"rope_theta": 500000, "rope_scaling": None}),
    ("llama", {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    ("llama", {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5}}),
    ("llama", {"rope_scaling": {"rope_type": "longrope", "original_max_position_embeddings": 32, **LONG}}),
    ("llama", {"rope_parameters": {"rope_theta": 77.0}}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 88.0}),
    ("qwen3", {"rope_theta": 1000000.0}),
    ("smollm3", {}),
    ("helium", {}),
    ("cohere", {}),
    ("glm", {}),
    ("glm", {"partial_rotary_factor": 0.25, "rope_theta": 300.0}),
    ("apertus", {}),
    ("apertus", {"rope_theta": 100.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}),
    ("ministral3", {}),
    ("olmo3", {}),
    ("olmo3", {"rope_theta": 100.0}),
    ("olmo3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}),
    ("gemma3_text", {}),
    ("gemma3_text", {"rope_theta": 300.0, "rope_local_base_freq": 30.0}),
    ("gemma3_text", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window_pattern": 2}),
]


@needs_transformers
@pytest.mark.parametrize("name, old", OLD, ids=lambda x: x if isinstance(x, str) else None)
def test_older_spellings_are_what_transformers_makes_of_them(name: str, old: dict[str, Any]) -> None:
    from transformers import AutoConfig

    sizes = SIZES | ({"tie_word_embeddings": True} if name.startswith("gemma") else {})
    newer = json.loads(AutoConfig.for_model(name, **json.loads(json.dumps(sizes | old))).to_json_string(use_diff=False))
    family = FAMILIES[name]
    read = [normal_form(family.read(family.settings(values))) for values in (sizes | old, newer)]
    assert read[0] == read[1]
    settings = family.settings(newer)
    family.read(settings)
    settings.refuse_unknown()
