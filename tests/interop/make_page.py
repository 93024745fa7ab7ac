"""Writes docs/families.md: how far the logits of each family are from those of `transformers`.

    python -m tests.interop.make_page

Measured on the fixtures, and on the folder of oracles beside the checkout where there is one.
"""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.config import depends_on_length
from gpt_jax.interop.families import FAMILIES
from gpt_jax.interop.hf import load_pretrained
from tests.interop.make_fixtures import FIXTURES

ROOT = Path(__file__).resolve().parents[2]
PAGE, ORACLES = ROOT / "docs" / "families.md", ROOT / "../shared/oracles"
HEAD = """\
# Families of published models

`gpt_jax.load_pretrained(folder)` reads these families and `gpt_jax.save_pretrained(folder, model, params)` writes
them for `transformers`. The table gives the largest difference of any logit from `transformers`, in float32, on tiny
random models that use every switch of the family (logits are of order 1; the tests allow 1e-4). "Fixtures" are those
in `tests/interop/fixtures`; "oracles" were made independently of them. "Greedy" counts the rows whose greedy
continuation equals that of `transformers`, token by token.

Falcon with ALiBi is two models: the "eager" attention of `transformers` 5 adds the penalties twice, its "sdpa"
attention once, as Falcon was trained. `attn_implementation` in config.json decides. Without it, a file that
`transformers` 5 wrote is read as "eager", with a warning, and an older file as "sdpa".

`python -m tests.interop.make_page` writes this page.

| `model_type` | fixtures | max \\|Δ logit\\| | oracles | max \\|Δ logit\\| | greedy |
|---|---|---|---|---|---|
"""
Measured = tuple[float, int, int]  # the largest difference, rows continued alike, rows


def measure(folder: Path, ids: np.ndarray, logits: np.ndarray, greedy: np.ndarray) -> Measured:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model, params, _ = load_pretrained(folder)
    apply, T = jax.jit(model.apply), ids.shape[1]
    longer = np.asarray(apply(params, jnp.asarray(np.concatenate([ids, greedy], axis=1), jnp.int32)))
    ours = longer[:, :T]
    if depends_on_length(model.config):
        ours = np.asarray(apply(params, jnp.asarray(ids, jnp.int32)))
    same = longer[:, T - 1 : -1].argmax(-1) == greedy
    return float(np.abs(ours - logits).max()), int(same.all(axis=1).sum()), len(ids)


def measured() -> tuple[dict[str, list[Measured]], dict[str, list[Measured]]]:
    """By `model_type`: of the fixtures, and of the oracles."""
    fixtures, oracles = defaultdict(list), defaultdict(list)
    for folder in sorted(FIXTURES.iterdir()):
        with np.load(folder / "expected.npz") as file:
            fixtures[_model_type(folder)].append(measure(folder, file["ids"], file["logits"], file["greedy"]))
        print(folder.name, *fixtures[_model_type(folder)][-1], flush=True)
    for folder in sorted(ORACLES.iterdir()) if ORACLES.is_dir() else ():
        ids, logits, generated = (np.load(folder / f"{name}.npy") for name in ("input_ids", "logits", "generated"))
        oracles[_model_type(folder)].append(measure(folder, ids, logits, generated[:, ids.shape[1] :]))
        print(folder.name, *oracles[_model_type(folder)][-1], flush=True)
    return fixtures, oracles


def _model_type(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text())["model_type"])


def page(fixtures: dict[str, list[Measured]], oracles: dict[str, list[Measured]]) -> str:
    lines = []
    for family in sorted(FAMILIES):
        cells = [f"`{family}`"]
        for results in (fixtures[family], oracles[family]):
            cells += [str(len(results)), f"{max(r[0] for r in results):.1e}"] if results else ["", ""]
        both = fixtures[family] + oracles[family]
        cells.append(f"{sum(r[1] for r in both)} of {sum(r[2] for r in both)}")
        lines.append(f"| {' | '.join(cells)} |")
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(*measured()), encoding="utf-8")
    print(PAGE)
