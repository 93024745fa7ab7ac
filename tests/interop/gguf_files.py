"""Small GGUF files, written by the gguf package as llama.cpp's converter writes them."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from gpt_jax.data.tokenizer import BpeTokenizer
from gpt_jax.data.tokenizer.bpe import _letters

C, H, K, D, F, L = 32, 4, 2, 8, 64, 2
TEXT = "the quick brown fox jumps over the lazy dog 0123456789 " * 4
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BPE = BpeTokenizer.train([TEXT], 300, "gpt2", SPECIAL)


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """The order in which llama.cpp keeps the rows of queries and keys: halves become neighbours."""
    return np.concatenate(
        [np.stack([head[: len(head) // 2], head[len(head) // 2 :]], 1).reshape(head.shape)
         for head in np.split(rows, heads)]
    )  # fmt: skip


def tensors(seed: int = 0, *, tied: bool = True, qkv_bias: bool = False) -> dict[str, np.ndarray]:
    """Name in transformers → tensor, of a Llama or Qwen2."""
    rng = np.random.default_rng(seed)
    V = BPE.vocab_size

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.2, shape).astype(np.float32)

    found = {"model.embed_tokens.weight": normal(V, C), "model.norm.weight": 1 + normal(C)}
    if not tied:
        found["lm_head.weight"] = normal(V, C)
    for layer in range(L):
        at = f"model.layers.{layer}."
        widths = {"q_proj": (H * D, C), "k_proj": (K * D, C), "v_proj": (K * D, C), "o_proj": (C, H * D)}
        found |= {f"{at}self_attn.{name}.weight": normal(*shape) for name, shape in widths.items()}
        if qkv_bias:
            found |= {f"{at}self_attn.{name}.bias": normal(widths[name][0]) for name in list(widths)[:3]}
        found |= {f"{at}mlp.{name}.weight": normal(F, C) for name in ("gate_proj", "up_proj")}
        found |= {f"{at}mlp.down_proj.weight": normal(C, F)}
        found |= {f"{at}{name}.weight": 1 + normal(C) for name in ("input_layernorm", "post_attention_layernorm")}
    return found


NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write(
    file: Path,
    named: dict[str, np.ndarray],
    architecture: str = "llama",
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    keys: dict[str, Any] | None = None,
    extra: dict[str, np.ndarray] | None = None,
    tokenizer: bool = True,
) -> None:
    """`keys` are further ones (or others), `extra` further tensors."""
    writer = gguf.GGUFWriter(file, architecture)
    if tokenizer:
        _write_tokenizer(writer)
    values: dict[str, Any] = {
        "context_length": 64, "embedding_length": C, "block_count": L, "feed_forward_length": F,
        "attention.head_count": H, "attention.head_count_kv": K, "rope.freq_base": 5e5,
        "attention.layer_norm_rms_epsilon": 1e-5, "rope.dimension_count": D, "vocab_size": BPE.vocab_size,
    }  # fmt: skip
    for key, value in (values | (keys or {})).items():
        name = key if "." in key and key.split(".")[0] in ("tokenizer", "general") else f"{architecture}.{key}"
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_uint32(name, value)
    for theirs, tensor in named.items():
        name = theirs
        for old, new in NAMES.items():
            name = name.replace(old, new)
        if architecture == "llama" and "q_proj" in theirs or architecture == "llama" and "k_proj" in theirs:
            tensor = permuted(tensor, H if "q_proj" in theirs else K)
        if tensor.ndim == 2 and kind != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor))
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_tokenizer(writer: gguf.GGUFWriter) -> None:
    library = BPE.to_hugging_face()
    pieces = {index: token for token, index in library.get_vocab(with_added_tokens=True).items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([pieces[index] for index in range(BPE.vocab_size)])
    writer.add_token_types([3 if pieces[index] in SPECIAL else 1 for index in range(BPE.vocab_size)])
    merges = []
    for piece, rank in sorted(BPE._ranks.items(), key=lambda item: item[1]):
        if len(piece) > 1:
            merges.append(" ".join(_letters(part) for part in BPE._parts(piece, rank)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(BPE.special_tokens["<|im_start|>"])
    writer.add_eos_token_id(BPE.special_tokens["<|im_end|>"])
    writer.add_chat_template(TEMPLATE)
