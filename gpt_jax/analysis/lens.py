"""Reading intermediate residual streams as predictions, and predictions as sums over what heads and MLPs write."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gpt_jax.analysis.capture import read, tap_shapes
from gpt_jax.config import LayerNorm, RmsNorm
from gpt_jax.config.errors import UserError
from gpt_jax.model.gpt import GPT
from gpt_jax.model.paths import matches


class Lens(NamedTuple):
    """What the final norm and the head make of the embedding (index 0) and of each layer's output (1 … L).

    `ids` and `log_probabilities` (nats) are of the most probable next tokens in descending order; `of_next` is the log
    probability of the token that follows, and `kl` the Kullback–Leibler divergence (nats) from the last layer's
    prediction to this one.
    """

    ids: Int[np.ndarray, "N B T top"]
    log_probabilities: Float[np.ndarray, "N B T top"]
    of_next: Float[np.ndarray, "N B T-1"]
    kl: Float[np.ndarray, "N B T"]


def logit_lens(model: GPT, params: Any, tokens: Int[Array, "B T"], top: int = 5, **options: Any) -> Lens:
    """The logit lens (nostalgebraist 2020). `options` are those of `model.apply`.

    Raises:
      UserError: `top` is not in [1, V].
    """
    V = model.config.vocab_size
    if V is None or not 1 <= top <= V:
        raise UserError(f"top must lie in [1, {V}], the size of the vocabulary, not {top}")
    streams = read(model, params, tokens, ("embedding", "blocks/*/output"), **options)
    values, program = list(streams.values()), _read_out(model, top)
    found = [jax.device_get(program(params, tokens, x, values[-1])) for x in values]
    return Lens(*(np.stack(parts) for parts in zip(*found, strict=True)))


@lru_cache(maxsize=16)
def _read_out(model: GPT, top: int) -> Any:
    """The compiled parts of `Lens` of one stream, given it and the last layer's."""

    def read_out(params: Any, tokens: Array, x: Array, last: Array) -> tuple[Array, ...]:
        logits: Any = [model.apply(params, y, method="read_out") for y in (last, x)]
        log_p, log_q = (jax.nn.log_softmax(y) for y in logits)
        best, ids = jax.lax.top_k(log_q, top)
        of_next = jnp.take_along_axis(log_q[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]
        return ids, best, of_next, jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)

    return jax.jit(read_out)


class Attribution(NamedTuple):
    """Terms whose sum is a difference of two logits before scale and softcap: (B, T) by name, heads (B, T, H).

    Names are `embedding`, `blocks/3/attention` (heads, and the rest of the sublayer, such as its bias, as the last
    entry), `blocks/3/mlp`, and `constant` for the norm's bias and the head's.
    """

    terms: dict[str, np.ndarray]
    total: Float[np.ndarray, "B T"]


def direct_logit_attribution(
    model: GPT, params: Any, tokens: Int[Array, "B T"], ids: Int[Array, "B T"], than: Int[Array, "B T"], **options: Any
) -> Attribution:
    """How much each head and MLP raises, at each position, the logit of `ids` above that of `than` through the residual
    stream alone; the final norm's statistics are held at what they are (Elhage et al. 2021, transformer-circuits.pub).

    Raises:
      UserError: the residual stream is not a sum of what sublayers write (a norm after the sum), or the final norm is
        neither a LayerNorm nor an RmsNorm.
    """
    c = model.config
    if any(block.residual == "post" for block in c.blocks):
        raise UserError('residual="post" normalizes the sum itself, so the stream is no sum of what sublayers write')
    globs = ("embedding", "blocks/*/attention_change", "blocks/*/mlp_change", f"blocks/{c.layers - 1}/output")
    shapes = tap_shapes(model, params, tokens, **options)
    by_head = [f"blocks/{i}/attention/output/by_head" for i, block in enumerate(c.blocks) if _writes_heads(block)]
    wanted = [name for name in shapes if matches(name, globs) or name in by_head]
    found = read(model, params, tokens, wanted, **options)
    direction, constant = _direction(model, params, ids, than)
    project = partial(_through_norm, model, params, found.pop(f"blocks/{c.layers - 1}/output"), direction)
    terms = {}
    for name, value in found.items():
        if name.endswith("_change"):
            place = name.removesuffix("_change")
            heads = f"{place}/output/by_head"
            if heads not in found:
                terms[place] = project(value)
                continue
            scale = c.blocks[int(place.split("/")[1])].residual_scale
            parts = np.moveaxis(found[heads].astype(np.float64), 2, 0) * (1.0 if scale is None else scale)
            each = [project(part) for part in parts]
            terms[place] = np.stack([*each, project(value - parts.sum(0))], axis=-1)
        elif name == "embedding":
            terms[name] = project(value)
    terms["constant"] = constant
    total = sum(term.sum(-1) if term.ndim == 3 else term for term in terms.values())
    return Attribution(terms, np.asarray(total))


def _writes_heads(block: Any) -> bool:
    """Whether what heads write reaches the residual stream without a norm of its own."""
    return block.residual in ("pre", "parallel", "parallel_norms")


def _direction(model: GPT, params: Any, ids: Array, than: Array) -> tuple[np.ndarray, np.ndarray]:
    """The difference of the head's columns of the two tokens (B, T, C), and what is added to any stream (B, T)."""
    p, a, b = params["params"], np.asarray(ids), np.asarray(than)
    kernel = p["embedding"]["table"] if model.config.head.tied else p["head"]["kernel"].T
    kernel = np.asarray(kernel, np.float64)
    direction = kernel[a] - kernel[b]
    constant = np.zeros(a.shape)
    norm = model.config.final_norm
    if isinstance(norm, LayerNorm) and norm.bias:
        constant += direction @ np.asarray(p["final_norm"]["bias"], np.float64)
    if model.config.head.bias:
        bias = np.asarray(p["head"]["bias"], np.float64)
        constant += bias[a] - bias[b]
    return direction, constant


def _through_norm(model: GPT, params: Any, stream: np.ndarray, direction: np.ndarray, part: np.ndarray) -> np.ndarray:
    """part (B, T, C) → its term (B, T), through the final norm with the statistics of the whole `stream`."""
    norm, x, y = model.config.final_norm, stream.astype(np.float64), part.astype(np.float64)
    if norm is None:
        return np.einsum("btc,btc->bt", y, direction)
    if not isinstance(norm, (LayerNorm, RmsNorm)):
        raise UserError(f"no attribution through the norm {type(norm).__name__}: it must be a LayerNorm or an RmsNorm")
    if isinstance(norm, LayerNorm):
        x, y = (z - z.mean(-1, keepdims=True) for z in (x, y))
    y = y / np.sqrt((x**2).mean(-1, keepdims=True) + norm.eps)
    if norm.scale:
        scale = np.asarray(params["params"]["final_norm"]["scale"], np.float64)
        y = y * (1 + scale if norm.unit_offset else scale)
    return np.einsum("btc,btc->bt", y, direction)
