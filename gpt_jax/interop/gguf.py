"""GGUF files, converted to the settings, tensor names and row order of a `transformers` folder.

The families of `gpt_jax.interop` then read them like a folder, and as strictly: an unknown key or tensor is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from gpt_jax.config.errors import ConfigError, MissingFile, nearest
from gpt_jax.config.foreign import quoted, shown
from gpt_jax.data.tokenizer import HuggingFaceTokenizer
from gpt_jax.interop.gguf_file import ConvertedTensor, QuantizedTensor, read_header
from gpt_jax.interop.gguf_tokenizer import read_tokenizer
from gpt_jax.interop.settings import TINY, checked_number, checked_whole
from gpt_jax.interop.weights import Tensor

# key, without the architecture's name in front → key of config.json
SIZES = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
NEEDED = [key for key in SIZES if key not in ("vocab_size", "attention.head_count_kv", "attention.key_length")]
# The other keys → the value that llama.cpp uses if they are missing; None means that it follows from the model's sizes.
OTHERS: dict[str, Any] = {
    "attention.value_length": None,
    "attention.causal": True,
    "attention.sliding_window": None,
    "rope.dimension_count": None,
    "rope.freq_base": 10_000.0,
    "rope.scaling.type": "none",
    "rope.scaling.factor": None,
    "rope.scaling.original_context_length": None,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.finetuned": None,  # how the model was trained
    "rope.scale_linear": None,  # the older name of a linear scaling's factor
    "expert_count": 0,
    "expert_used_count": 0,
    "tensor_data_layout": None,  # how the file was made
}
NUMBERS = {key for key in (*SIZES, *OTHERS) if key.endswith(("_epsilon", "freq_base", "factor", "scale_linear"))}
TEXTS, FLAGS = {"rope.scaling.type", "tensor_data_layout"}, {"attention.causal", "rope.scaling.finetuned"}
# `general.file_type` → the type that no tensor of such a file has: 16-bit types differ in nothing but their number.
FILE_TYPE = "general.file_type"
FOREIGN: dict[int, gguf.GGMLQuantizationType] = {
    gguf.LlamaFileType.MOSTLY_F16: gguf.GGMLQuantizationType.BF16,
    gguf.LlamaFileType.MOSTLY_BF16: gguf.GGMLQuantizationType.F16,
}
LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
STEM = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Architecture:
    """How a GGUF architecture maps to config.json.

    Attributes:
      model_type: the family.
      permuted: whether the rows of query and key kernels are ordered for a rotation of neighbouring pairs, as in ggml.
      biases: keys of config.json → the tensor of the first layer whose presence sets them.
    """

    model_type: str
    permuted: bool
    biases: Mapping[str, str]


ARCHITECTURES = {
    "llama": Architecture("llama", True, {"attention_bias": "attn_output.bias", "mlp_bias": "ffn_down.bias"}),
    "qwen2": Architecture("qwen2", False, {}),
    "qwen3": Architecture("qwen3", False, {"attention_bias": "attn_output.bias"}),
}


def open_gguf(
    file: str | Path, ignore: Collection[str] = ()
) -> tuple[dict[str, Any], Mapping[str, Tensor], HuggingFaceTokenizer | None]:
    """Opens a GGUF file.

    Returns the equivalent config.json, the tensors under the names of `transformers`, and the tokenizer (None if the
    file has none). `ignore` lists keys to treat as absent.

    Raises:
      MissingFile: there is no such file.
      UserError: the file is damaged or of an unknown version.
      ConfigError: gpt_jax does not read the architecture, a key or the tokenizer.
    """
    path = Path(file)
    if not path.exists():
        raise MissingFile(f"there is no file {path}: give a GGUF file")
    values, tensors = read_header(path)
    values = {key: value for key, value in values.items() if key not in ignore}
    name = str(values["general.architecture"]) if "general.architecture" in values else None
    if name not in ARCHITECTURES:
        raise ConfigError(
            f"gpt_jax does not read the architecture {quoted(name)} of {path}{nearest(str(name), ARCHITECTURES)}"
        )
    if "split.count" in values and checked_whole("split.count", values["split.count"], 0) > 1:
        raise ConfigError(f"{path} is one of {values['split.count']} parts: merge them with llama.cpp's gguf-split")
    settings = {key.removeprefix(f"{name}."): value for key, value in values.items() if key.startswith(f"{name}.")}
    _refuse_unknown(name, settings, values)
    _check_types(settings)
    _check_file_type(values, tensors)
    config = _config(ARCHITECTURES[name], OTHERS | settings, tensors)
    return config, _renamed(ARCHITECTURES[name], config, tensors), read_tokenizer(values, str(path))


def _refuse_unknown(name: str, settings: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    for key in settings:
        if key not in SIZES and key not in OTHERS:
            raise ConfigError(
                f'the file has an unknown key "{name}.{key}": {shown(settings[key])}; if it does not change the logits,'
                f' pass ignore=("{name}.{key}",)'
            )
    for key in values:
        if key.split(".")[0] not in ("general", "tokenizer", "split", "quantize", name):
            raise ConfigError(
                f'the file has an unknown key "{key}"; if it does not change the logits, pass ignore=("{key}",)'
            )
    for key in NEEDED:
        if key not in settings:
            raise ConfigError(f'the file lacks the key "{name}.{key}": convert the model again with llama.cpp')


def _check_types(settings: Mapping[str, Any]) -> None:
    """Raises ConfigError if a setting has a value of another type, or outside of its range."""
    for key, value in settings.items():
        if key in TEXTS or key in FLAGS:
            wanted, what = (str, "a text") if key in TEXTS else (bool, "true or false")
            if not isinstance(value, wanted):
                raise ConfigError(f'the file has "{key}": {shown(value)}, which must be {what}')
        elif key in NUMBERS:
            checked_number(key, value, TINY)
        else:
            each = value if isinstance(value, list) and value and key in SIZES else [value]
            for one in each:
                checked_whole(key, one, 1 if key in SIZES else 0)


def _check_file_type(values: Mapping[str, Any], tensors: Mapping[str, QuantizedTensor]) -> None:
    """Raises ConfigError if a file of one 16-bit type has a tensor of the other."""
    kind = values[FILE_TYPE] if FILE_TYPE in values else None
    other = FOREIGN[kind] if isinstance(kind, int) and kind in FOREIGN else None
    wrong = [name for name, x in tensors.items() if x.kind == other]
    if wrong:
        raise ConfigError(
            f'the file has "{FILE_TYPE}": {kind}, and {wrong[0]} is {tensors[wrong[0]].kind.name}: download it again,'
            f' or pass ignore=("{FILE_TYPE}",) if it is right'
        )


def _config(kind: Architecture, settings: Mapping[str, Any], tensors: Mapping[str, QuantizedTensor]) -> dict[str, Any]:
    """Returns the equivalent config.json."""
    config: dict[str, Any] = {SIZES[key]: _one(key, settings[key]) for key in SIZES if key in settings}
    table = tensors["token_embd.weight"].shape if "token_embd.weight" in tensors else (0,)
    config = {"model_type": kind.model_type, "vocab_size": table[0], **config}
    config["rms_norm_eps"] = _decimal(config["rms_norm_eps"])
    config["tie_word_embeddings"] = "output.weight" not in tensors
    config |= {key: f"blk.0.{tensor}" in tensors for key, tensor in kind.biases.items()}
    width = config["head_dim"] if "head_dim" in config else config["hidden_size"] // config["num_attention_heads"]
    for key, wanted, what in (
        ("attention.value_length", width, "only values as wide as keys"),
        ("rope.dimension_count", width, "only heads that are rotated whole"),
        ("attention.causal", True, "only causal models"),
        ("expert_count", 0, "no mixture of experts from GGUF"),
        ("expert_used_count", 0, "no mixture of experts from GGUF"),
    ):
        if settings[key] not in (None, wanted):
            raise ConfigError(f'the file has "{key}": {shown(settings[key])}, and gpt_jax reads {what}')
    window = settings["attention.sliding_window"]
    if window and window < config["max_position_embeddings"]:
        raise ConfigError(
            f'the file has "attention.sliding_window": {window}, which llama.cpp ignores and gpt_jax does not read'
        )
    config["rope_parameters"] = _rope(settings, config["max_position_embeddings"], width // 2, tensors)
    return config


def _rope(
    settings: Mapping[str, Any], length: int, pairs: int, tensors: Mapping[str, QuantizedTensor]
) -> dict[str, Any]:
    """Returns the settings of RoPE, of `pairs` a head, as `rope_parameters` of config.json."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": _decimal(settings["rope.freq_base"])}
    kind, factor = settings["rope.scaling.type"], settings["rope.scaling.factor"]
    if settings["rope.scale_linear"] is not None:
        kind, factor = "linear", settings["rope.scale_linear"]
    if kind not in ("none", "linear", "yarn"):
        raise ConfigError(
            f'the file has "rope.scaling.type": {quoted(kind)}, and gpt_jax reads only none, linear and yarn'
        )
    if kind != "none":
        if factor is None:
            raise ConfigError(f'the file has "rope.scaling.type": "{kind}" without "rope.scaling.factor"')
        rope |= {"rope_type": kind, "factor": _decimal(factor)}
    if kind == "yarn":
        original = settings["rope.scaling.original_context_length"]
        rope["original_max_position_embeddings"] = length if original is None else original
        if settings["rope.scaling.attn_factor"] != 1.0:  # a multiplier in llama.cpp, a value in transformers
            own = 1 + 0.1 * math.log(rope["factor"])
            rope["attention_factor"] = own * _decimal(settings["rope.scaling.attn_factor"])
    if FACTORS not in tensors:
        return rope
    if tensors[FACTORS].shape != (pairs,):
        raise ConfigError(f"the file has {FACTORS} of shape {tensors[FACTORS].shape}, and its heads have {pairs} pairs")
    factors = tensors[FACTORS].read()
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise ConfigError(f"the file has {FACTORS} that are not all positive: download it again")
    llama3 = rope | {"rope_type": "llama3", "factor": float(factors.max()), "low_freq_factor": 1.0}
    llama3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    if np.allclose(_llama3_factors(llama3, len(factors)), factors, rtol=1e-5):
        return llama3
    each = factors.tolist()  # any other divisors of the frequencies are those of LongRoPE
    return rope | {
        "rope_type": "longrope",
        "short_factor": each,
        "long_factor": each,
        "original_max_position_embeddings": length,
        "attention_factor": 1.0,
    }


def _llama3_factors(rope: Mapping[str, Any], pairs: int) -> np.ndarray:
    """Returns the divisors of the frequencies of all pairs in Llama 3's scaling of RoPE."""
    frequencies = rope["rope_theta"] ** -(np.arange(pairs) / pairs)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    kept = np.clip((turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"]), 0, 1)
    return 1 / (kept + (1 - kept) / rope["factor"])


def _renamed(
    kind: Architecture, config: Mapping[str, Any], tensors: Mapping[str, QuantizedTensor]
) -> dict[str, Tensor]:
    """Returns the tensors under the names of `transformers`; unknown ones keep theirs, which the family rejects."""
    heads = {"attn_q": config["num_attention_heads"]}
    heads["attn_k"] = config["num_key_value_heads"] if "num_key_value_heads" in config else heads["attn_q"]
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name == FACTORS:
            continue
        module, _, leaf = name.rpartition(".")
        if found := re.fullmatch(r"blk\.(\d+)\.(\w+)", module):
            layer, part = found.groups()
            theirs = f"model.layers.{layer}.{LAYER[part]}.{leaf}" if part in LAYER else name
            if kind.permuted and part in heads:
                result[theirs] = ConvertedTensor(tensor, partial(_halves, heads=heads[part]))
                continue
        else:
            theirs = f"{STEM[module]}.{leaf}" if module in STEM else name
        result[theirs] = tensor
    return result


def _halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the rows of a query or key kernel from rotating neighbouring pairs to rotating halves."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _one(key: str, value: Any) -> Any:
    """Returns a setting that a file may give once or for each layer."""
    if not isinstance(value, list):
        return value
    if len(set(value)) != 1:
        raise ConfigError(
            f'the file has "{key}": {shown(value)}, and gpt_jax reads only models whose layers have one size'
        )
    return value[0]


def _decimal(value: float) -> float:
    """Returns the shortest decimal that equals `value` in float32, in which files store it: 1e-5, not 9.99999975e-6."""
    return float(str(np.float32(value)))
