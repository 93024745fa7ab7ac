"""The pictures of a study's results, and why one can't be drawn."""

from __future__ import annotations

from dataclasses import replace

from gpt_jax.ablation.curves import accuracy, curves, extrapolation, gap, positions
from gpt_jax.ablation.findings import StudyResults
from gpt_jax.ablation.forests import arms_forest, contrasts_forest, secondary_forest
from gpt_jax.ablation.picture import STAMP, Picture, coloured, endpoint_title
from gpt_jax.ablation.rates import learning_rates, tuning
from gpt_jax.ablation.statuses import failed
from gpt_jax.ablation.suite_curves import suite_curves
from gpt_jax.pages.charts import Plane, Spot, draw_spots, front
from gpt_jax.pages.numbers import compact, writer


def pictures(results: StudyResults) -> tuple[list[Picture], list[str]]:
    """The pictures in the order of the report, and the names of those that are missing, with the reason unless nothing
    was measured. Those of a smoke test are stamped.
    """
    made = {
        "forest of differences": arms_forest(results),
        **({"forest of secondary endpoints": secondary_forest(results)} if results.secondary else {}),
        "forest of contrasts": contrasts_forest(results),
        "tuning of the learning rate": tuning(results),
        "validation loss over training": curves(results, "validation"),
        "loss minus the baseline’s over training": gap(results),
        "training loss": curves(results, "train"),
        **suite_curves(results),
        "loss against learning rate": learning_rates(results),
        "loss by position": positions(results),
        "length extrapolation": extrapolation(results),
        "accuracy": accuracy(results),
        "endpoint against KV bytes": _front(results),
    }
    absent = {name: reason for name, reason in made.items() if not isinstance(reason, Picture)}
    missing = [f"{name} ({reason})" if reason else name for name, reason in absent.items()]
    drawn = [picture for picture in made.values() if isinstance(picture, Picture)]
    return [replace(picture, stamp=STAMP if results.is_smoke else "") for picture in drawn], missing


def _front(results: StudyResults) -> Picture | str | None:
    """The endpoint against the bytes of the KV cache; arms of which seeds failed have no place in it."""
    write, spots, ranked = writer(results.smallest_difference), [], set()
    for i, arm, index in coloured(results):
        size, mean = arm.kv_bytes_per_token, arm.mean
        if size is not None and mean is not None and not failed(arm):
            tip = f"{arm.name}: {write.plus_minus(mean, arm.interval)} at {size:,.6g} bytes per token"
            spots.append(Spot(arm.name, index, i, float(size), float(mean), arm.interval, tip))
            ranked |= {i} if arm.is_ranked else set()
    sizes = {spot.x for spot in spots}
    if len(sizes) < 2:
        return f"all arms keep {compact(min(sizes))} bytes per token" if len(spots) > 1 else None
    log = 2 if min(sizes) > 0 and max(sizes) > 4 * min(sizes) else None
    plane = Plane(f"KV cache (bytes per token{', log scale' if log else ''})", endpoint_title(results), log_x=log)
    sign = 1 if results.lower_is_better else -1
    best = {spot.series for spot in front([replace(s, y=sign * s.y) for s in spots if s.series in ranked])}
    line = sorted((spot for spot in spots if spot.series in best), key=lambda spot: spot.x)
    better = "Lower" if results.lower_is_better else "Higher"
    note = f"{better} and further left is better. The line is the Pareto front; bars are 95% intervals of the mean."

    def draw(width: int, kind: str, about: str) -> str:
        return draw_spots(spots, line, plane, width, kind, about)

    return Picture("pareto", f"{_capital(results.metric)} against KV bytes", note, draw)


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:].replace("_", " ")
