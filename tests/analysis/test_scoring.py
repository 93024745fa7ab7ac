"""Scores of continuations are those of one row at a time, whatever is in the batch, and however contexts are shared."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.analysis import scoring
from gpt_jax.analysis.scoring import Scorer
from gpt_jax.config import Attention, BlockConfig, Delta, GatedMlp, Prefix, Rope, Window
from gpt_jax.config.errors import UserError
from gpt_jax.training.partition import shardings
from gpt_jax.training.sharding import make_mesh
from tests.tiny import VOCABULARY, apply, random_params, tiny

CONTEXT = 80
MIXED = (
    BlockConfig(Attention(heads=4, head_width=4, mask=Window(5), position=Rope()), GatedMlp(12)),
    BlockConfig(Delta(heads=2, head_width=4), GatedMlp(12)),
    BlockConfig(Attention(heads=4, head_width=4), GatedMlp(12)),
)


def questions(seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Of many lengths, some too long, and two long contexts with several continuations."""
    rng = np.random.default_rng(seed)
    ids = lambda n: rng.integers(0, VOCABULARY, n).tolist()  # noqa: E731
    alone = [(ids(n), ids(m)) for n, m in [(1, 1), (3, 9), (100, 4), (20, 20), (1, CONTEXT), (15, 2)]]
    long = [(context, ids(m)) for context in (ids(34), ids(64)) for m in (1, 4, 3)]
    mixed = [*alone, *long]
    rng.shuffle(mixed)
    return mixed


def one_by_one(model: GPT, params, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    kept = np.array([*context, *continuation])[-(CONTEXT + 1) :]
    before, row = len(kept) - len(continuation), np.zeros((1, CONTEXT), np.int32)
    row[0, : len(kept) - 1] = kept[:-1]
    prefix = {"prefix": np.array([before])} if isinstance(model.config.blocks[0].attention.mask, Prefix) else {}
    logits = np.asarray(apply(model, params, row, **prefix)[0, before - 1 : len(kept) - 1], np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return float(logs[np.arange(len(continuation)), continuation].sum()), bool((logs.argmax(-1) == continuation).all())


@pytest.mark.parametrize("kind", ["mixed", "prefix"])
def test_scores_are_those_of_one_row_at_a_time(kind: str, monkeypatch) -> None:
    if kind == "mixed":
        config = dataclasses.replace(tiny(), blocks=MIXED, context_length=CONTEXT)
    else:
        config = tiny(Attention(heads=4, head_width=4, mask=Prefix(), position=Rope()), context_length=CONTEXT)
    model = GPT(config)
    params, asked = random_params(model), questions()
    expected = [one_by_one(model, params, *question) for question in asked]
    groups = []
    given = scoring._terms_after
    monkeypatch.setattr(scoring, "_terms_after", lambda *args: (groups.append(args[2].shape), given(*args))[1])
    scores = Scorer(model, params, make_mesh(jax.devices()[:1]), 4)(asked)
    np.testing.assert_allclose(
        [s.loglikelihood for s in scores], [value for value, _ in expected], rtol=2e-6, atol=2e-5
    )
    assert [s.is_greedy for s in scores] == [greedy for _, greedy in expected]
    assert bool(groups) == (kind == "mixed")  # the contexts of a prefix model see both ways, so they are not shared


def test_a_mesh_gives_the_same_scores() -> None:
    model = GPT(dataclasses.replace(tiny(), blocks=MIXED[:1], context_length=CONTEXT))
    params, asked = random_params(model), questions(1)
    mesh = make_mesh(axes="data=2,tensor=2")
    spread = jax.device_put(params, shardings(model.config, mesh, params))
    one = Scorer(model, params, make_mesh(jax.devices()[:1]), 4)(asked)
    several = Scorer(model, spread, mesh, 3)(asked)
    np.testing.assert_allclose(*([s.loglikelihood for s in scores] for scores in (one, several)), rtol=1e-5)
    assert [s.is_greedy for s in one] == [s.is_greedy for s in several]


def test_a_token_that_is_certain_is_greedy() -> None:
    model = GPT(tiny(context_length=CONTEXT))
    params, mesh = random_params(model), make_mesh(jax.devices()[:1])
    best = int(apply(model, params, np.array([[3, 1]]))[0, -1].argmax())
    (first, other) = Scorer(model, params, mesh, 2)([([3, 1], [best]), ([3, 1], [(best + 1) % VOCABULARY])])
    assert first.is_greedy and not other.is_greedy and other.loglikelihood < first.loglikelihood < 0
    assert math.isfinite(other.loglikelihood)


def test_what_can_not_be_scored_is_said() -> None:
    model = GPT(tiny(context_length=CONTEXT))
    score = Scorer(model, random_params(model), make_mesh(jax.devices()[:1]), 2)
    for question, said in [
        (([], [1]), "at least one token"),
        (([1], []), "at least one token"),
        (([1], [VOCABULARY]), "out of range"),
        (([1], [1] * (CONTEXT + 1)), "exceeds the context length"),
    ]:
        with pytest.raises(UserError, match=said):
            score([question])
