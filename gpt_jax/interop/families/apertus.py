"""Apertus (2025, arXiv:2509.14233), whose MLP has xIELU, and DiffLlama (Ye et al. 2024, arXiv:2410.05258)."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpt_jax import config as cfg
from gpt_jax.interop.families.common import DEFAULTS, LLAMA, QK, activation, attention, decoder, gated, rms
from gpt_jax.interop.families.llama import llama_like
from gpt_jax.interop.family import TensorRow, by_name, constant
from gpt_jax.interop.settings import Settings


def read_apertus(s: Settings) -> cfg.ModelConfig:
    mlp = cfg.Mlp(s.integer("intermediate_size"), activation(s))
    return decoder(s, cfg.BlockConfig(attention(s, score=cfg.Score(qk_norm=rms(s))), mlp, rms(s)), rms(s))


def apertus_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    names = {
        "blocks/{}/attention_norm": "model.layers.{}.attention_layernorm",
        "blocks/{}/mlp_norm": "model.layers.{}.feedforward_layernorm",
    }
    special = []
    if isinstance(model.blocks[0].mlp, cfg.Mlp) and model.blocks[0].mlp.activation == "xielu":
        for i in range(model.layers):
            at = f"model.layers.{i}.mlp.act_fn"
            for alpha in ("alpha_p", "alpha_n"):
                path = f"blocks/{i}/mlp/xielu/{alpha}"
                special.append(TensorRow(f"{at}.{alpha}", (path,), lambda x: (x.reshape(()),), lambda x: x.reshape(1)))
            # Constants, which some files store in bfloat16.
            special += [constant(f"{at}.beta", np.float32(0.5)), constant(f"{at}.eps", np.float32(-1e-6))]
    return by_name(model, LLAMA | QK | names, special)


def read_diffllama(s: Settings) -> cfg.ModelConfig:
    s.expect("attention_dropout", (0, None), "dropout in DiffLlama")
    norm = rms(s)
    mixer = attention(s, cfg.Differential, norm=cfg.RmsNorm(norm.eps, scale=False))
    return decoder(s, cfg.BlockConfig(mixer, gated(s), norm), norm)


def diffllama_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    lambdas = {
        f"blocks/{{}}/attention/lambda_{name}{n}": f"model.layers.{{}}.self_attn.lambda_{name[0]}{n}"
        for name in ("query", "key")
        for n in (1, 2)
    }
    return by_name(model, LLAMA | lambdas)


APERTUS: dict[str, Any] = DEFAULTS | {
    "vocab_size": 131072,
    "intermediate_size": 14336,
    "hidden_act": "xielu",
    "max_position_embeddings": 65536,
    "rms_norm_eps": 1e-5,
    "rope_theta": 12_000_000.0,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 12_000_000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
}
APERTUS_FIXED = {"post_norm": False, "qk_norm": True, "mlp_bias": False, "hidden_dropout": 0.0}
DIFFLLAMA = DEFAULTS | {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "rms_norm_eps": 1e-5,
    "lambda_std_dev": 0.1,
}

FAMILIES = [
    llama_like("apertus", "ApertusForCausalLM", APERTUS, read_apertus, rows=apertus_rows, fixed=APERTUS_FIXED),
    llama_like(
        "diffllama",
        "DiffLlamaForCausalLM",
        DIFFLLAMA,
        read_diffllama,
        rows=diffllama_rows,
        fixed={"mlp_bias": False},
    ),
]
