"""Which kind of work an operation of a compiled step belongs to, from its scope in the model and its source lines."""

from __future__ import annotations

from gpt_jax.analysis.hlo import Op, Program

COLLECTIVES = "collectives"
COPIES = "copies"

# (kind, parts of a scope): the first that fits. Scopes are paths in the traced program.
SCOPES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("attention kernel", ("pallas_call",)),
    ("norms", ("attention_norm", "mlp_norm", "final_norm", "_norm/")),
    ("attention", ("/attention/",)),
    ("mlp", ("/mlp/",)),
    ("embedding", ("/embedding/", "/value_embedding")),
    ("head and loss", ("/head/", "GPT.logits")),
)
# (kind, parts of the file of a source line): the first line of the innermost that fits.
FILES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("head and loss", ("training/blockwise.py", "training/loss.py", "model/head.py")),
    ("optimizer", ("training/optimizer.py", "training/average.py", "/optax/")),
    ("residuals of the layers", ("model/stack.py",)),
    ("gradients and update", ("training/step.py",)),
)
COPYING = ("copy", "copy-start", "copy-done", "slice-start", "slice-done")


def kind_of(program: Program, op: Op, source: str) -> str:
    """The kind of work of an operation; `source` is "links" if it waits for other chips."""
    if source == "links":
        return COLLECTIVES
    scope, frame = op.scope, op.frame
    if "/" not in scope and op.opcode == "fusion":  # the compiler's own name, or none
        inner = [found for found in program.computations[op.called[0]].values() if "/" in found.scope]
        scope, frame = (inner[-1].scope, inner[-1].frame) if inner else (scope, frame)
    if op.opcode in COPYING:
        return COPIES
    for kind, parts in SCOPES:
        if any(part in scope for part in parts):
            return kind
    files = [line.file for line in program.stack(frame)]
    for kind, parts in FILES:
        if any(part in file for file in files for part in parts):
            return kind
    return "other"
