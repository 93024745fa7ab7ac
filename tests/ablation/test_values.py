"""Endpoints by seed, from folders that were written by hand: each value against the same arithmetic on paper."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt_jax.ablation import records
from gpt_jax.ablation.endpoint import (
    BITS_PER_BYTE,
    Endpoint,
    FailureRate,
    FinalLoss,
    LongLoss,
    PositionLoss,
    ProbeAccuracy,
    RateSensitivity,
    ToTarget,
)
from gpt_jax.ablation.findings import ArmResults, StudyResults
from gpt_jax.ablation.report import to_html
from gpt_jax.ablation.results import collect
from gpt_jax.ablation.rows import mean_of, row_sums, write_rows
from gpt_jax.ablation.schema import (
    AccuracyBy,
    ArmRecord,
    Measurements,
    PlannedRunRecord,
    RunOutcome,
    StudyRecord,
)
from gpt_jax.config.conversion import to_dict
from gpt_jax.runs.folder import RunFolder

STEPS, INITIAL = 40, 4.0
CPU = {"count": 1, "kind": "cpu", "machine": "x86_64", "processes": 1}
TPU = CPU | {"kind": "TPU v5 lite", "count": 4, "processes": 2}


@dataclasses.dataclass
class Made:
    """A run that was never trained: validation losses at even steps, the last at the end."""

    arm: str
    seed: int = 0
    rate: float = 0.01
    losses: tuple[float | None, ...] = (3.0, 2.0)
    status: str | None = "finished"
    measured: Measurements | None = None
    rows: tuple[np.ndarray, np.ndarray] | None = None
    devices: Mapping[str, Any] | None = None
    purpose: str = "arm"
    speeds: Mapping[int, float] = dataclasses.field(default_factory=dict)


def found(folder: Path, endpoint: Endpoint, /, *runs: Made, **study: Any) -> StudyResults:
    """The results of a study of these runs, whose first arm is the baseline."""
    names = list(dict.fromkeys(run.arm for run in runs))
    planned = [
        PlannedRunRecord(run.arm, run.seed, run.rate, run.purpose, f"runs/{i}", STEPS, "") for i, run in enumerate(runs)
    ]
    config = {"optimizer": {"learning_rate": 0.01}}
    record = StudyRecord(
        **{
            "question": "?",
            "baseline": names[0],
            "seeds": tuple(sorted({run.seed for run in runs})),
            "smallest_difference": 0.01,
            "endpoint": to_dict(endpoint),
            "metric": endpoint.words,
            "unit": endpoint.unit,
            "lower_is_better": endpoint.lower_is_better,
            "arms": tuple(ArmRecord(name=n, config=config, flops_per_token=6, tokens=STEPS * 100) for n in names),
            "runs": tuple(planned),
        }
        | study
    )
    place = RunFolder(folder)
    place.make()
    records.write(record, place, "study.json")
    for run, plan in zip(runs, planned, strict=True):
        write(RunFolder(place.file(plan.folder)), run, endpoint)
    return collect(folder)


def write(folder: RunFolder, run: Made, endpoint: Endpoint) -> None:
    if run.status is None:
        return
    folder.make()
    each = STEPS // len(run.losses)
    lines: list[dict[str, Any]] = [
        {"step": s, "split": "train", "loss": INITIAL - 0.01 * (s - 1), "tokens": 100, "grad_norm": 1.0, "skipped": 0}
        | {"tokens_per_second": run.speeds.get(s)}
        for s in range(1, STEPS + 1)
    ]
    lines += [
        {"step": each * i, "split": "validation", "loss": x, "bits_per_byte": None if x is None else x / 2}
        for i, x in enumerate(run.losses, 1)
    ]
    folder.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    address = None if run.devices is None else {"devices": run.devices, "libraries": {"jax": "1"}}
    records.write(RunOutcome(run.status, 1.0, None, address), folder, "outcome.json")
    if run.measured is not None:
        records.write(run.measured, folder, "measurements.json")
    if run.rows is not None:
        write_rows(folder, endpoint, run.rows)


def one(folder: Path, endpoint: Endpoint, run: Made, /, **study: Any) -> float | None:
    """The value of a study's only seed."""
    values = found(folder, endpoint, run, **study).arms[0].values
    assert set(values) == {"0"}
    return values["0"]


def test_the_final_loss_is_that_of_the_last_evaluation_in_its_unit(tmp_path: Path) -> None:
    assert one(tmp_path / "nats", FinalLoss(), Made("a")) == 2.0
    assert one(tmp_path / "bits", FinalLoss(), Made("a"), unit=BITS_PER_BYTE) == 1.0
    assert one(tmp_path / "earlier", FinalLoss(), Made("a"), endpoint=None) == 2.0


def test_a_measured_endpoint_is_what_was_measured(tmp_path: Path) -> None:
    accuracy = AccuracyBy("pairs", ((2, 0.9), (4, 0.5), (8, 0.1)))
    measured = Measurements(extrapolation=((1, 2.0), (4, 2.7)), accuracy_by=accuracy)
    run = Made("a", measured=measured)
    assert one(tmp_path / "long", LongLoss(4), run) == 2.7
    assert one(tmp_path / "at", ProbeAccuracy(4), run) == 0.5
    assert one(tmp_path / "mean", ProbeAccuracy(), run) == pytest.approx(0.5)
    unknown = found(tmp_path / "unknown", LongLoss(2), run).arms[0]
    assert unknown.values == {} and unknown.losses == {"0": 2.0}, "not measured is not failed"


def test_the_loss_at_positions_is_weighted_by_tokens(tmp_path: Path) -> None:
    rows = np.array([6.0, 2.0]), np.array([3.0, 1.0])
    endpoint = PositionLoss(first=8)
    assert one(tmp_path, endpoint, Made("a", rows=rows)) == 2.0
    assert row_sums(RunFolder(tmp_path / "runs" / "0"), PositionLoss(first=4)) is None, "rows of other positions"


def test_sensitivity_takes_all_rates_of_a_seed(tmp_path: Path) -> None:
    """(2 − 2 + 3 − 2 + 4 − 2) / 3 with a run that diverged and the loss that training began with, 4; the rows agree."""
    weights = np.array([1.0, 3.0])
    runs = [
        Made("a", rate=0.01, losses=(2.0,), rows=(np.array([2.5, 5.5]), weights)),
        Made("a", rate=0.1, losses=(3.0,), rows=(np.array([2.0, 10.0]), weights)),
        Made("a", rate=1.0, losses=(9.0,), status="diverged"),
    ]
    arm = found(tmp_path / "all", RateSensitivity(), *runs).arms[0]
    assert arm.values["0"] == arm.learning_rate_sensitivity == 1.0
    assert arm.learning_rate == 0.01 and arm.by_learning_rate == {"0.01": (2.0,), "0.1": (3.0,), "1": (None,)}
    assert arm.losses == {"0": 2.0}, "the figures beside it are those of the base's rate"
    runs[1].status = None
    assert found(tmp_path / "part", RateSensitivity(), *runs).arms[0].values == {}, "one rate is missing"


@pytest.mark.parametrize("losses", [(None,), (INITIAL + 1,)])
def test_an_arm_that_never_learns_is_not_insensitive(losses: tuple[float | None], tmp_path: Path) -> None:
    runs = [Made("a", rate=rate, losses=losses) for rate in (0.01, 0.1)]
    assert found(tmp_path, RateSensitivity(), *runs).arms[0].values == {"0": None}


def test_the_rows_of_each_endpoint_give_its_value(tmp_path: Path) -> None:
    """The mean of the population interval is the difference of the values, also of an endpoint over several rates."""
    rng, weights = np.random.default_rng(0), np.array([1.0, 2.0, 3.0, 2.0])

    def run(arm: str, seed: int, rate: float) -> Made:
        sums = weights * rng.uniform(1.0, 3.0, 4)
        return Made(arm, seed, rate, (float(sums.sum() / weights.sum()),), rows=(sums, weights))

    for endpoint, rates, extra in (
        (RateSensitivity(), (0.01, 0.1, 1.0), {}),
        (FinalLoss(), (0.01,), {"unit": BITS_PER_BYTE}),
        (PositionLoss(first=1), (0.01,), {}),
    ):
        runs = [run(arm, seed, rate) for arm in "ab" for seed in (0, 1) for rate in rates]
        if endpoint == RateSensitivity():
            runs[2].losses = (INITIAL + 1,)  # a rate at which nothing is learnt
        results = found(tmp_path / type(endpoint).__name__, endpoint, *runs, **extra)
        versus = results.arms[1].versus_baseline
        assert versus is not None and versus.population_interval is not None and versus.interval is not None
        assert np.mean(versus.population_interval) == pytest.approx(versus.mean, abs=1e-6), endpoint


def test_flops_to_a_target_are_interpolated(tmp_path: Path) -> None:
    """From 3 at step 20 to 2 at step 40, 2.25 is reached at step 35 of 100 tokens, 6 FLOPs each; from the initial 4 at
    step 0, 3.5 at step 10.
    """
    assert one(tmp_path / "between", ToTarget(2.25), Made("a")) == pytest.approx(35 * 100 * 6)
    assert one(tmp_path / "first", ToTarget(3.5), Made("a")) == pytest.approx(10 * 100 * 6)
    assert one(tmp_path / "never", ToTarget(1.9), Made("a")) is None
    assert one(tmp_path / "diverged", ToTarget(3.5), Made("a", status="diverged")) is None


def test_seconds_to_a_target_leave_the_pauses_out(tmp_path: Path) -> None:
    """Steps of 1 s up to 20 and of 3 s from 21 on; those without a recorded speed took what their neighbours did."""
    speeds = {s: 100.0 if s <= 20 else 100 / 3 for s in range(1, STEPS + 1) if s not in (1, 40)}
    run, endpoint = Made("a", speeds=speeds), ToTarget(2.25, "seconds")
    assert one(tmp_path / "alone", endpoint, run) == pytest.approx(20 + 15 * 3)
    shared = found(tmp_path / "shared", endpoint, run, jobs=2)
    assert shared.arms[0].values == {} and shared.jobs == 2 and "shared the machine" in shared.marks[-1]
    assert found(tmp_path / "unknown", endpoint, Made("a")).arms[0].values == {}


def test_failures_are_counted_by_the_rule(tmp_path: Path) -> None:
    runs = [
        Made("a", 0),
        Made("a", 1, losses=(3.0, 2.6)),
        Made("a", 2, status="diverged"),
        Made("a", 3, losses=(None,)),
    ]
    results = found(tmp_path, FailureRate(), *runs, Made("a", 4, status=None), fails_above=2.5)
    assert results.arms[0].values == {"0": 0.0, "1": 1.0, "2": 1.0, "3": 1.0}
    assert results.repeat.failures == (
        "a, seed 1, learning rate 0.01: its final validation loss of 2.6 is above 2.5",
        "a, seed 2, learning rate 0.01: diverged",
        "a, seed 3, learning rate 0.01: its final validation loss is not finite",
    )


def test_survivors_are_no_arm(tmp_path: Path) -> None:
    """A seed above `fails_above` leaves the arm without mean, interval, curve or measurement; one that is missing does
    not.
    """
    measured = Measurements(loss_by_position=((0.0, 2.0),), extrapolation=((1, 2.0),))
    runs = [Made(arm, seed, measured=measured) for arm in "ab" for seed in (0, 1, 2)]
    runs[4].losses, runs[2].status = (3.0, 2.6), None
    results = found(tmp_path, FinalLoss(), *runs, fails_above=2.5)
    whole, failed = results.arms
    assert (whole.mean, whole.n, set(whole.values)) == (2.0, 2, {"0", "1"})
    assert whole.curves is not None and whole.curves.validation and whole.loss_by_position and whole.extrapolation
    assert failed.values == failed.losses == {"0": 2.0, "1": None, "2": 2.0} and failed.n == 3
    assert (failed.mean, failed.std, failed.interval) == (None, None, None)
    assert failed.curves is not None and not failed.curves.train and not failed.curves.validation
    assert not failed.loss_by_position and not failed.extrapolation and failed.versus_baseline is not None
    assert failed.versus_baseline.failures is not None and failed.versus_baseline.failures.failed == 1


def test_a_seed_fails_on_the_endpoint_whatever_its_loss(tmp_path: Path) -> None:
    """A finite loss that never reaches the target is a failure everywhere; a rate of a sweep that diverges is none."""
    runs = [Made(arm, seed) for arm in "ab" for seed in (0, 1)]
    runs[3].losses = (3.0, 2.5)
    missed = found(tmp_path / "target", ToTarget(2.25), *runs).arms[1]
    assert missed.values["1"] is None and missed.losses["1"] == 2.5 and missed.mean is None
    assert missed.failures is not None and (missed.failures.failed, missed.failures.n) == (1, 2)
    page = to_html(collect(tmp_path / "target"))
    assert "Seeds failed: b (1 of 2). These arms have no mean" in page
    sweep = [Made(arm, seed, rate) for arm in "ab" for seed in (0, 1) for rate in (0.001, 0.01)]
    sweep[7].status = "diverged"
    swept = found(tmp_path / "sweep", RateSensitivity(), *sweep).arms[1]
    assert swept.losses["1"] is None and swept.mean is not None
    assert swept.failures is not None and swept.failures.failed == 0
    assert "Seeds failed" not in to_html(collect(tmp_path / "sweep"))


def test_an_arm_that_seems_to_be_the_baseline_is_told(tmp_path: Path) -> None:
    """Where the guard sees two programs and both give one loss, but for its rounding."""
    runs = [Made(arm, seed, losses=(2.0 + 0.1 * seed,)) for arm in "ab" for seed in (0, 1)]
    runs[3].losses = (2.1 * (1 + 2e-7),)
    mark = "b has a’s final loss at every seed: they may be one function"
    assert mark in found(tmp_path / "same", FinalLoss(), *runs).marks
    runs[3].losses = (2.1 * (1 + 2e-5),)
    assert mark not in found(tmp_path / "other", FinalLoss(), *runs).marks


def test_the_noise_is_that_of_the_endpoint(tmp_path: Path) -> None:
    accuracy = [Measurements(accuracy_by=AccuracyBy("pairs", ((2, x),))) for x in (0.5, 0.7)]
    fresh = [Made("a", seed, measured=m, purpose="noise") for seed, m in enumerate(accuracy, 5)]
    noise = found(tmp_path / "whole", ProbeAccuracy(2), Made("a"), *fresh).noise
    assert noise is not None and noise.mean == pytest.approx(0.6) and noise.n == 2
    fresh[0].status = "diverged"
    noise = found(tmp_path / "failed", ProbeAccuracy(2), Made("a"), *fresh).noise
    assert noise is not None and (noise.mean, noise.std, noise.n) == (None, None, 2)


def test_a_pair_across_two_kinds_of_device_is_left_out_and_told(tmp_path: Path) -> None:
    runs = [Made(arm, seed, devices=CPU) for arm in "ab" for seed in (0, 1, 2)]
    runs[4].devices = TPU
    results = found(tmp_path, FinalLoss(), *runs)
    baseline, arm = results.arms
    assert results.devices == ("1 × cpu (x86_64)", "4 × TPU v5 lite (x86_64, 2 processes)")
    assert set(baseline.values) == {"0", "1", "2"} and set(arm.values) == {"0", "2"}
    assert arm.versus_baseline is not None and arm.versus_baseline.n == 2
    assert results.marks[-1].startswith("b: left out seed 1, which ran on another kind of device")
    runs[4].devices = None
    unknown = found(tmp_path / "unknown", FinalLoss(), *runs)
    assert "left out seed 1" in unknown.marks[-1], "where one ran is not recorded"


def test_a_copy_on_another_kind_of_device_checks_nothing(tmp_path: Path) -> None:
    runs = [Made(arm, seed, devices=CPU) for arm in "ab" for seed in (0, 1)]
    copy = Made("A/A", 1, devices=TPU, purpose="aa")
    results = found(tmp_path / "elsewhere", FinalLoss(), *runs, copy)
    assert results.aa is None
    assert [mark for mark in results.marks if mark.startswith("determinism is not checked at seed 1: the copy ran on")]
    runs[1].status = runs[3].status = None
    waits = found(tmp_path / "waits", FinalLoss(), *runs, copy)
    assert not [mark for mark in waits.marks if "determinism" in mark], "its run may still end there"


def test_versions_and_flags_part_pairs_too(tmp_path: Path) -> None:
    runs = [Made(arm, seed, devices=CPU) for arm in "ab" for seed in (0, 1)]
    assert not any("left out" in mark for mark in found(tmp_path, FinalLoss(), *runs).marks)
    file = RunFolder(tmp_path / "runs" / "3")
    ended = records.read(RunOutcome, file, "outcome.json")
    assert ended.address is not None
    for part, other in (("libraries", {"jax": "2"}), ("numerics", {"x": 1}), ("flags", {"XLA_FLAGS": ["--a"]})):
        changed = dataclasses.replace(ended, address={**ended.address, part: other})
        records.write(changed, file, "outcome.json")
        assert set(arm_of(collect(tmp_path), "b").values) == {"0"}, part
    records.write(dataclasses.replace(ended, address={**ended.address, "code": {"a": "b"}}), file, "outcome.json")
    assert set(arm_of(collect(tmp_path), "b").values) == {"0", "1"}, "the arms' own code may differ"


def arm_of(results: StudyResults, name: str) -> ArmResults:
    return next(arm for arm in results.arms if arm.name == name)


def test_rows_are_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.uniform(60, 200, 1742), np.full(1742, 64.0)
    folder = RunFolder(tmp_path)
    write_rows(folder, FinalLoss(), rows)
    kept = row_sums(folder, FailureRate())
    assert kept is not None and mean_of(kept) == pytest.approx(rows[0].sum() / rows[1].sum(), rel=1e-6)
    assert folder.file("rows.npz").stat().length < 10_000
