"""Makes the fixtures of `test_families.py`: tiny random models of each family, as `transformers` saves and computes
them.

    python -m tests.interop.make_fixtures [NAME …]

Needs the extra `oracles` (transformers and torch); the tests don't. A fixture is a folder with config.json,
model.safetensors and expected.npz: `ids` (B, T), their `logits` (B, T, V), and `greedy` (B, N), what comes next.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures"
LIMIT = 100_000  # bytes of a fixture
ROWS, LENGTH, NEW = 2, 20, 6
MARGIN = 2e-3  # by which each greedy choice is ahead of the next


@dataclass(frozen=True)
class Case:
    """A model of `transformers`: its type, its settings, and keys that its config.json gets beside them."""

    model_type: str
    settings: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)
    implementation: str = "eager"
    greedy: bool = True  # False where each token's frequencies depend on the length so far
    exact: bool = False  # in float32; all others take half the room
    rename: dict[str, str] = field(default_factory=dict)  # beginnings of tensors' names, as older files have them


def build(case: Case, seed: int) -> Any:
    """The model with random parameters: norms away from 1, biases away from 0, logits of order 1."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(case.model_type, **ids | case.settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=case.implementation).eval()
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter += 0.3 * torch.randn_like(parameter)
            else:
                size = 0.5 if id(parameter) in tables else 1.2 * config.hidden_size**-0.5
                parameter.copy_(size * torch.randn_like(parameter))
            parameter.copy_(parameter.bfloat16())  # what the file will hold
    return model


def logits_of(model: Any, ids: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.as_tensor(ids), use_cache=False).logits.float().numpy()


def continued(model: Any, ids: np.ndarray, steps: int) -> tuple[np.ndarray, float]:
    """What comes next, greedily, and the smallest margin by which a token was chosen."""
    row, margin = ids, float("inf")
    for _ in range(steps):
        last = logits_of(model, row)[:, -1]
        best = np.sort(last, axis=-1)
        margin = min(margin, float((best[:, -1] - best[:, -2]).min()))
        row = np.concatenate([row, last.argmax(-1)[:, None]], axis=1)
    return row[:, ids.shape[1] :], margin


def make(name: str, case: Case, root: Path = FIXTURES) -> Path:
    """Writes the fixture, with the first seed whose greedy choices are clear."""
    import torch

    for seed in range(100):
        model = build(case, seed)
        ids = np.random.default_rng(seed).integers(3, model.config.vocab_size, (ROWS, LENGTH))
        logits = logits_of(model, ids)  # first: a dynamic RoPE keeps the greatest length it has seen
        greedy, margin = continued(model, ids, NEW if case.greedy else 0)
        if not case.greedy or (margin > MARGIN and len(set(greedy.ravel().tolist())) > 2):
            break
    else:
        raise AssertionError(f"{name}: no seed gives clear choices")
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        model.to(torch.float32 if case.exact else torch.bfloat16).save_pretrained(scratch)
        folder.mkdir(parents=True)
        shutil.copy(Path(scratch) / "model.safetensors", folder)
        settings = json.loads((Path(scratch) / "config.json").read_text()) | case.extra
        (folder / "config.json").write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
    if case.rename:
        _rename(folder / "model.safetensors", case.rename)
    np.savez_compressed(folder / "expected.npz", ids=ids, logits=logits, greedy=greedy)
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert size <= LIMIT, f"{name} has {size} bytes"
    return folder


def _rename(file: Path, beginnings: dict[str, str]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    for new, old in beginnings.items():
        tensors = {old + name.removeprefix(new) if name.startswith(new) else name: x for name, x in tensors.items()}
    save_file(tensors, file, metadata={"format": "pt"})


def reopened(folder: Path, implementation: str | None = None) -> Any:
    """The model of a folder, as `transformers` opens it; without a word about tensors that it lacks or can't place."""
    from transformers import AutoModelForCausalLM

    chosen = {} if implementation is None else {"attn_implementation": implementation}
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **chosen)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[key], f"{key}: {sorted(map(str, report[key]))}"
    return model.eval()


def main(names: list[str]) -> None:
    from tests.interop.cases import CASES

    for name in names or CASES:
        case = CASES[name]
        folder = make(name, case)
        print(
            f"{name}: {sum(file.stat().st_size for file in folder.iterdir())} bytes",
            dataclasses.asdict(case)["settings"],
        )


if __name__ == "__main__":
    main(sys.argv[1:])
