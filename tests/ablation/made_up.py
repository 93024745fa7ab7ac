"""Results of studies that never ran: numbers from a seed, in the shape that the runner writes."""

from typing import Any

import numpy as np

from gpt_jax.ablation import statistics as st

SHIFTS = (0.0, 0.0012, 0.0195, 0.031, -0.0125, 0.004)  # nats per token, of the arms against the first
SMALLEST = 0.01
RATES = (3e-4, 1e-3, 3e-3, 1e-2)


def study(
    names: tuple[str, ...] = ("mha", "gqa2", "mqa", "mqa, window 32", "gqa2, gated"), seeds: int = 8
) -> dict[str, Any]:
    """A whole study; the first arm is the baseline."""
    rng = np.random.default_rng(7)
    shared = rng.normal(0, 0.006, seeds)
    shifts = [SHIFTS[i % len(SHIFTS)] for i in range(len(names))]
    losses = {
        n: 1.532 + shift + shared + rng.normal(0, 0.004 + 0.003 * (i % 3), seeds)
        for i, (n, shift) in enumerate(zip(names, shifts, strict=True))
    }
    compared = {n: st.compare(losses[n].tolist(), losses[names[0]].tolist()) for n in names[1:]}
    corrected = st.holm({n: found.t_p for n, found in compared.items()})
    arms = [_arm(n, i, losses[n], rng) for i, n in enumerate(names)]
    for arm in arms[1:]:
        arm["versus_baseline"] = _versus(compared[arm["name"]], corrected[arm["name"]])
    return {
        "question": "How many key/value heads does a small character model need?",
        "metric": "validation_loss",
        "smallest_difference": SMALLEST,
        "baseline": names[0],
        "seeds": list(range(seeds)),
        "budget": {"match": "params", "field": "model.mlp.width"},
        "verdict": "Two key/value heads lose nothing that matters against four (0.000 ± 0.003); one loses 0.022.",
        "noise": {"mean": 1.5331, "std": 0.0072, "n": 4},
        "aa": {"equal": True},
        "arms": arms,
        "repeat": {
            "command": "python -m experiments.ablate --config=configs/ablations/kv_heads.py --workdir=runs/kv",
            "versions": {"gpt_jax": "0.1.0", "jax": "0.10.2", "flax": "0.12.8"},
            "git": "65bf656697de730a70768418d4eb750b801160d1",
            "data_hash": "5d03befadb3e47de45e20256c52368126b2eea" + 26 * "0",
            "configs": {n: {"model": {"attention": {"kv_heads": 4 >> i}, "width": 128}} for i, n in enumerate(names)},
            "failures": [],
            "wall_seconds": 1711.3,
        },
    }


def _arm(name: str, i: int, losses: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    summary, mean = st.summarize(losses.tolist()), float(losses.mean())
    return {
        "name": name,
        "changes": {"model.attention.kv_heads": 4 >> i} if i else {},
        "parameters": 814_848 - 9_000 * i,
        "parameters_non_embedding": 806_000 - 9_000 * i,
        "flops_per_token": 5.4e6 - 3e4 * i,
        "kv_bytes_per_token": (8192, 4096, 2048, 512, 4096)[i % 5] * (1 + i // 5),
        "measured_decode_tokens_per_second": 1480.2 + 90 * i,
        "measured_training_tokens_per_second": 30_411.0 + 700 * i,
        "measured_peak_bytes": (212 - i) * 2**20,
        "best_learning_rate": 1e-2 if i == 2 else 3e-3,
        "learning_rate_at_edge": i == 2,
        "learning_rate_sensitivity": 0.031 + 0.004 * i,
        "mean": summary.mean,
        "std": summary.std,
        "n": summary.n,
        "interval": None if summary.interval is None else list(summary.interval),
        "versus_baseline": None,
        "losses": {str(seed): float(value) for seed, value in enumerate(losses)},
        "by_learning_rate": {f"{rate:g}": _at_rate(rate, i, mean, rng) for rate in RATES},
        "curves": _curves(mean, i, rng),
        "loss_by_position": [[p, mean - 0.1 + 2.2 / (1 + p / (2 + 0.3 * i)) + rng.normal(0, 0.01)] for p in range(128)],
        "extrapolation": [[f, *(mean + 0.02 * i * (f - 1) + off for off in (0, -0.01, 0.01))] for f in (1, 2, 4)],
        "accuracy_by": {
            "label": "number of pairs",
            "points": [[n, 1 / (1 + (n / (40 - 6 * (i % 5))) ** 3)] for n in (4, 8, 16, 32, 64)],
        },
        "diagnostics": {
            "attention_entropy": 2.31 - 0.1 * i,
            "sink_mass": 0.12,
            "largest_logit": 9.7 + i,
            "gradient_norm": 0.41,
            "skipped_steps": 0,
        },
        "runs": [_run(i, seed) for seed in range(len(losses))],
    }


def _at_rate(rate: float, i: int, mean: float, rng: np.random.Generator) -> list[float]:
    return [mean + 0.09 * (np.log10(rate / (1e-2 if i == 2 else 3e-3))) ** 2 + e for e in rng.normal(0, 0.004, 3)]


def _curves(mean: float, i: int, rng: np.random.Generator) -> dict[str, Any]:
    def points(steps: np.ndarray, values: np.ndarray, half: float) -> list[list[float]]:
        return [[int(s), v, v - half, v + half] for s, v in zip(steps, values.tolist(), strict=True)]

    late, every = np.arange(50, 1001, 50), np.arange(10, 1001, 2)
    validation = mean + 2.6 * np.exp(-late / (90 + 6 * i)) + 0.25 * (np.exp(-late / 400) - np.exp(-2.5))
    train = mean - 0.1 + 2.8 * np.exp(-every / (85 + 6 * i)) + rng.normal(0, 0.02, len(every))
    return {"train": points(every, train, 0.02), "validation": points(late, validation, 0.012)}


def _run(i: int, seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "learning_rate": 3e-3,
        "folder": f"runs/{i:02d}{seed:02d}",
        "status": "finished",
        "config_hash": f"{i:08x}{seed:08x}",
        "wall_seconds": 61.5 + seed,
    }


def _versus(found: st.Comparison, p_holm: float | None) -> dict[str, Any]:
    return {
        "mean": found.mean,
        "t_interval": None if found.t_interval is None else list(found.t_interval),
        "bca_interval": None if found.bca_interval is None else list(found.bca_interval),
        "t_p": found.t_p,
        "t_p_holm": p_holm,
        "sign_flip_p": found.sign_flip_p,
        "verdict": st.verdict(found, p_holm, SMALLEST),
        "seeds_to_decide": None if found.std is None else st.seeds_to_decide(found.std, SMALLEST),
    }
