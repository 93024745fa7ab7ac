"""The largest arrays of a program at its peak, with the line of gpt_jax that makes each and the setting that helps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax

from gpt_jax import config
from gpt_jax.analysis.forecast import Buffer
from gpt_jax.analysis.hlo import Op, Program
from gpt_jax.analysis.kinds import kind_of
from gpt_jax.analysis.live import Held, origin, peak

PACKAGE = "gpt_jax/"
SHOWN = 3
ACTIVATIONS, GRADIENTS, COPIES, LOSS = "activations", "gradients and new parameters", "converted parameters", "logits"


def temporaries(program: Program, c: config.Config, params: Any, target: str) -> tuple[dict[str, int], list[Buffer]]:
    """What the temporaries at the peak are, in bytes a chip, and the largest of them.

    `params` are the parameters' shapes, with shardings; `target` is as in `Forecast`.
    """
    shapes = {_squeezed(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(params) if leaf.ndim > 1}
    found = [(held, origin(program, held)) for held in peak(program)[1]]
    kinds: dict[str, int] = defaultdict(int)
    groups: dict[tuple[str, str, str], list[Held]] = defaultdict(list)
    for held, op in found:
        kind = _kind(program, held, op, shapes)
        kinds[kind] += held.array.stored
        groups[kind, _line(program, op), _text(held)].append(held)
    largest = sorted(groups.items(), key=lambda group: -sum(held.array.stored for held in group[1]))[:SHOWN]
    return dict(kinds), [
        Buffer(
            bytes=sum(held.array.stored for held in members),
            array=text if len(members) == 1 else f"{len(members)} × {text}",
            scope=_scope(origin(program, members[0])),
            line=line,
            remedy=remedy(kind, c, target),
        )
        for (kind, line, text), members in largest
    ]


def remedy(kind: str, c: config.Config, target: str) -> str:
    """The flag that makes arrays of a kind smaller; "" if there is none left."""
    if target != "train":
        return "--rows, fewer of them" if kind == ACTIVATIONS else ""
    if kind == LOSS:
        block = c.model.head.block
        return f"--config.model.head.block={block // 2 if block is not None and block > 1 else 128}"
    if kind in (GRADIENTS, COPIES) and "fsdp" not in c.mesh:
        return "--config.mesh=fsdp=-1"
    if kind == ACTIVATIONS and c.model.remat != "full":
        return f"--config.model.remat={'dots' if c.model.remat is None else 'full'}"
    return f"--config.train.accumulate={2 * c.train.accumulate}" if kind == ACTIVATIONS else ""


def _kind(program: Program, held: Held, op: Op, shapes: set[tuple[int, ...]]) -> str:
    if _squeezed(held.array.shape) in shapes:
        return GRADIENTS if held.array.dtype == "f32" else COPIES
    return LOSS if kind_of(program, op, "") == "head and loss" else ACTIVATIONS


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(length for length in shape if length > 1))


def _text(held: Held) -> str:
    return f"{held.array.dtype}[{','.join(map(str, held.array.shape))}]"


def _scope(op: Op) -> str:
    """The end of an operation's path in the model, without what JAX adds."""
    parts = [part for part in op.scope.split("/") if "(" not in part and part not in ("while", "body", "closed_call")]
    return "/".join(parts[-4:])


def _line(program: Program, op: Op) -> str:
    """The innermost line of the model or the training step; "" if none made it."""
    for frame in program.stack(op.frame):
        if PACKAGE in frame.file and "site-packages" not in frame.file:
            return f"{PACKAGE}{frame.file.rsplit(PACKAGE, 1)[1]}:{frame.line}"
    return ""
