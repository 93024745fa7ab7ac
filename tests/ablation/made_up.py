"""Results of studies that never ran: numbers from a seed, judged as real ones are, with every field filled."""

import dataclasses
import json
from typing import Any

import numpy as np

from gpt_jax.ablation import secondary as secondary_endpoints
from gpt_jax.ablation import statistics as st
from gpt_jax.ablation.contrasts import contrasts
from gpt_jax.ablation.findings import (
    ArmResults,
    Copies,
    Curves,
    Diagnostics,
    Event,
    Noise,
    Repeat,
    RunRecord,
    StudyResults,
)
from gpt_jax.ablation.schema import (
    AccuracyBy,
    Answered,
    Budget,
    Grouping,
    Leaf,
    Points,
    Rules,
    SecondaryEndpoint,
    Setup,
    StudyRecord,
    Trial,
    Tuned,
)
from gpt_jax.ablation.sentence import verdict_sentence
from gpt_jax.ablation.verdict import compare_arms

SHIFTS = (0.0, 0.0012, 0.0195, 0.031, -0.0125, 0.004)  # nats per token, of the arms against the first
SMALLEST = 0.01
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
NAMES = ("mha", "gqa2", "mqa", "mqa, window 32", "gqa2, gated")
PARTS = (("4", "full"), ("2", "full"), ("1", "full"), ("1", "window"), ("4", "window"))
ROWS = 40  # of the validation set, 128 tokens each
QUESTION = "How many key/value heads does a small character model need?"
STEPS, BATCH, CONTEXT = 1000, 12, 128
ENDPOINTS = (
    SecondaryEndpoint("recall, full of pairs at 128", "recall", 0.05),
    SecondaryEndpoint("copy at 128", "copy", 0.05),
)


def losses_of(names: tuple[str, ...], seeds: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Final losses by seed, correlated over the arms."""
    shared = rng.normal(0, 0.006, seeds)
    return {
        name: 1.532 + SHIFTS[i % len(SHIFTS)] + shared + rng.normal(0, 0.004 + 0.003 * (i % 3), seeds)
        for i, name in enumerate(names)
    }


def results(
    names: tuple[str, ...] = NAMES,
    seeds: int = 8,
    lost: dict[str, tuple[int, ...]] | None = None,
    secondary: bool = True,
) -> StudyResults:
    """A whole study; the first arm is the baseline. `lost` says which seeds of an arm failed, `secondary` whether there
    are secondary endpoints.
    """
    rng = np.random.default_rng(7)
    losses, lost = losses_of(names, seeds, rng), lost or {}
    arms = [_arm(name, i, losses[name], lost[name] if name in lost else (), rng) for i, name in enumerate(names)]
    arms = [_asked(arm, i) for i, arm in enumerate(arms)] if secondary else arms
    text = rng.normal(0, 20, ROWS)
    rows = {
        name: {str(s): (128 * v + text + rng.normal(0, 2, ROWS), np.full(ROWS, 128.0)) for s, v in enumerate(values)}
        for name, values in losses.items()
    }
    record = StudyRecord(
        question=QUESTION,
        baseline=names[0],
        seeds=tuple(range(seeds)),
        smallest_difference=SMALLEST,
        endpoint={"type": "FinalLoss"},
        planned_seeds=max(2, min(5, seeds)),
        most_seeds=12,
        fails_above=2.5,
        rules_out_failures=0.5,
        budget=Budget("params", "model.mlp.width"),
        secondary=ENDPOINTS if secondary else (),
        arms=(),
        runs=(),
    )
    judged = compare_arms(arms, record, rows)
    return StudyResults(
        **{field.name: getattr(record, field.name) for field in dataclasses.fields(Rules)},
        question=record.question,
        baseline=record.baseline,
        seeds=record.seeds,
        budget=record.budget,
        setup=Setup(
            steps=STEPS,
            batch_size=BATCH,
            context_length=CONTEXT,
            tokens=STEPS * BATCH * CONTEXT,
            validation_tokens=111_488,
            precision="float32",
        ),
        devices=("TPU v5 lite",),
        jobs=2,
        marks=("the endpoint was changed after 8 runs had finished",),
        log=(
            Event(time="2026-03-01T08:00:00Z", what="start", text="5 seeds; devices: TPU v5 lite"),
            Event(time="2026-03-01T09:30:00Z", what="look", text="5 seeds: undecided", runs_done=25),
            Event(time="2026-03-01T09:41:00Z", what="change", text="endpoint: loss at 2 × → final loss", runs_done=25),
            Event(time="2026-03-01T12:30:00Z", what="look", text="8 seeds", runs_done=40),
        ),
        verdict=verdict_sentence(judged, record, 40, 40),
        noise=Noise(1.5331, 0.0072, 4),
        aa=Copies(True, 3),
        arms=judged,
        contrasts=contrasts(judged, record, rows),
        secondary=secondary_endpoints.judged(judged, record),
        secondary_comparisons=secondary_endpoints.comparisons(judged, record),
        repeat=_repeat(names),
    )


def study(*arguments: Any, **more: Any) -> dict[str, Any]:
    """The same as `results.json` holds it."""
    found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(results(*arguments, **more))))
    return found


def _repeat(names: tuple[str, ...]) -> Repeat:
    return Repeat(
        command="python -m experiments.ablate --config=configs/ablations/kv_heads.py --workdir=runs/kv",
        versions={"gpt_jax": "0.1.0", "jax": "0.10.2", "flax": "0.12.8"},
        git="65bf656697de730a70768418d4eb750b801160d1",
        data_hash="5d03befadb3e47de45e20256c52368126b2eea" + 26 * "0",
        together=Grouping(2, "two seeds train in one program", "00000000"),
        configs={n: {"model": {"attention": {"kv_heads": 4 >> i}, "width": 128}} for i, n in enumerate(names)},
        failures=(),
        wall_seconds=1711.3,
    )


def _arm(name: str, i: int, losses: np.ndarray, lost: tuple[int, ...], rng: np.random.Generator) -> ArmResults:
    values = {str(seed): None if seed in lost else float(value) for seed, value in enumerate(losses)}
    summary, mean = st.summarize([] if lost else losses.tolist()), float(losses.mean())
    best = 1e-2 if i == 2 else 3e-3
    changes = {"model.attention.kv_heads": 4 >> i} if i else {}
    return ArmResults(
        name=name,
        changes=changes,
        leaves=tuple(Leaf(key, 4, value, "arm") for key, value in changes.items()),
        parts=PARTS[i] if i < len(PARTS) else (),
        parameters=814_848 - 9_000 * i,
        parameters_non_embedding=806_000 - 9_000 * i,
        flops_per_token=5.4e6 - 3e4 * i,
        kv_bytes_per_token=(8192, 4096, 2048, 512, 4096)[i % 5] * (1 + i // 5),
        tokens=STEPS * BATCH * CONTEXT,
        flops=(5.4e6 - 3e4 * i) * STEPS * BATCH * CONTEXT,
        budget_ratio=1 - 0.0004 * i,
        measured_decode_tokens_per_second=1480.2 + 90 * i,
        measured_training_tokens_per_second=30_411.0 + 700 * i,
        measured_peak_bytes=(212 - i) * 2**20,
        learning_rate=best,
        tuned=_tuned(i, mean, best),
        learning_rate_sensitivity=0.031 + 0.004 * i,
        mean=summary.mean,
        std=summary.std,
        n=len(losses) - len(lost),
        interval=summary.interval,
        values=values,
        losses=dict(values),
        by_learning_rate={f"{rate:g}": _at_rate(rate, i, mean, rng) for rate in RATES},
        curves=_curves(mean, i, rng),
        loss_by_position=tuple(
            (p, y := mean - 0.1 + 2.2 / (1 + p / (2 + 0.3 * i)) + rng.normal(0, 0.01), y - 0.02, y + 0.02)
            for p in range(128)
        ),
        extrapolation=tuple((f, *(mean + 0.02 * i * (f - 1) + off for off in (0, -0.01, 0.01))) for f in (1, 2, 4)),
        accuracy_by=AccuracyBy("number of pairs", tuple(_accuracy(n, i) for n in (4, 8, 16, 32, 64))),
        diagnostics=Diagnostics(2.31 - 0.1 * i, 0.12, 9.7 + i, 0.41, 0),
        runs=tuple(_run(i, seed, seed in lost) for seed in range(len(losses))),
    )


def _asked(arm: ArmResults, i: int) -> ArmResults:
    """With answers: the second arm of equal loss recalls less, and all copy without a mistake."""
    rng = np.random.default_rng(i)
    shares = [
        0.93 - (0.31 if i % 5 == 1 else 0.01 * i) + rng.normal(0, 0.01, len(arm.values)),
        np.ones(len(arm.values)),
    ]
    answers = {
        endpoint.name: {
            seed: None if value is None else Answered(float(share), float(share) - 0.05, 0.0625, 256)
            for (seed, value), share in zip(arm.values.items(), by_seed, strict=True)
        }
        for endpoint, by_seed in zip(ENDPOINTS, shares, strict=True)
    }
    return dataclasses.replace(arm, answers=answers)


def _accuracy(n: int, i: int) -> tuple[float, ...]:
    y = 1 / (1 + (n / (40 - 6 * (i % 5))) ** 3)
    return n, y, 0.98 * y, min(1.0, 1.02 * y)


def _tuned(i: int, mean: float, best: float) -> Tuned:
    """Every arm tries five rates, at the largest of which the second arm diverges, and then a weight decay."""
    rates = (*RATES, 3e-2)
    losses = [mean + 0.01 + 0.09 * float(np.log10(rate / best)) ** 2 for rate in rates]
    trials = [
        Trial(learning_rate=r, loss=None if r == 3e-2 and i == 1 else v) for r, v in zip(rates, losses, strict=True)
    ]
    chosen = Trial(learning_rate=best, weight_decay=0.1, warmup=100, loss=mean + 0.008)
    return Tuned(trials=(*trials, chosen), best=chosen, is_at_edge=i == 2)


def _at_rate(rate: float, i: int, mean: float, rng: np.random.Generator) -> tuple[float, ...]:
    noise = rng.normal(0, 0.004, 3)
    return tuple(mean + 0.09 * float(np.log10(rate / (1e-2 if i == 2 else 3e-3))) ** 2 + float(e) for e in noise)


def _curves(mean: float, i: int, rng: np.random.Generator) -> Curves:
    def points(steps: np.ndarray, values: np.ndarray, half: float) -> Points:
        return tuple((int(s), v, v - half, v + half) for s, v in zip(steps, values.tolist(), strict=True))

    late, every = np.arange(50, 1001, 50), np.arange(10, 1001, 2)
    validation = mean + 2.6 * np.exp(-late / (90 + 6 * i)) + 0.25 * (np.exp(-late / 400) - np.exp(-2.5))
    train = mean - 0.1 + 2.8 * np.exp(-every / (85 + 6 * i)) + rng.normal(0, 0.02, len(every))
    return Curves(train=points(every, train, 0.02), validation=points(late, validation, 0.012))


def _run(i: int, seed: int, is_lost: bool) -> RunRecord:
    status = "diverged" if is_lost else "finished"
    return RunRecord(seed, 3e-3, f"runs/{i:02d}{seed:02d}", status, f"{i:08x}{seed:08x}", 61.5 + seed)
