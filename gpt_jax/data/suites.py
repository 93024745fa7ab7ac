"""The points of an evaluation suite on a run that learned a task: the same task at other lengths and sizes.

A suite is a list of points. Each has a task of the run's own vocabulary, whose answers are known, and a chance level:
the accuracy of an answer drawn uniformly from the symbols that can be one, in `recall` from those that the pairs show.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gpt_jax.config import Copy, DataConfig, HardRecall, Induction, Needle, Recall, Sort, Track
from gpt_jax.config.errors import ConfigError, UserError
from gpt_jax.data.tasks import make_task

FACTORS = (0.5, 1, 2, 4)  # of the length of the run's rows

# The tasks that a run must have learned for a suite; a text model takes the suites of `prompts` instead.
SUITES: dict[str, tuple[type[DataConfig], ...]] = {
    "recall": (Recall, HardRecall),
    "copy": (Copy,),
    "sort": (Sort,),
    "induction": (Induction,),
    "needle": (Needle,),
    "states": (Track,),
}
REPEATING = ("copy", "induction")  # on text: rows whose second half repeats the first


def fitting(learned: DataConfig) -> list[str]:
    """The suites whose task a run on `learned` has learned."""
    return [name for name, kinds in SUITES.items() if isinstance(learned, kinds)]


class Point(NamedTuple):
    """One point of the curve `kind`.

    `size` is the number of things to keep, such as pairs (None: not counted), and `answers` are the symbols that can be
    an answer and stand in a row before it: drawing one of these may be better than `chance`.
    """

    suite: str
    kind: str
    length: int
    size: int | None
    chance: float
    answers: range
    task: DataConfig


def points(suite: str, learned: DataConfig, rows: int, lengths: Sequence[int] | None = None) -> list[Point]:
    """The points of a suite for a run that learned the task `learned`, each of `rows` rows of `lengths` tokens.

    Lengths (None: half to four times that of the run's rows) at which a task has no rows are left out.

    Raises:
      UserError: the run did not learn a task of this suite, or no length is one of it.
    """
    if not isinstance(learned, SUITES[suite]):
        known = fitting(learned)
        hint = f"choose --suite={','.join(known)}" if known else "it needs a run that learned one of them"
        names = " or ".join(kind.__name__ for kind in SUITES[suite])
        raise UserError(
            f"the suite {suite} is of {names}, whose symbols this run on {type(learned).__name__} never saw: {hint}"
        )
    trained = make_task(learned).length
    asked = sorted({max(round(factor * trained), 1) for factor in FACTORS}) if lengths is None else sorted(set(lengths))
    found: dict[tuple[str, int, int | None], Point] = {}
    for point in (point for length in asked for point in _at(suite, learned, length, rows)):
        found.setdefault((point.kind, point.length, point.size), point)  # lengths may round to one
    if not found:
        raise UserError(
            f"the suite {suite} has no rows of {', '.join(map(str, asked))} tokens: choose larger --lengths"
        )
    return list(found.values())


def _at(suite: str, learned: DataConfig, length: int, rows: int) -> Iterator[Point]:
    """The points of one length: of each variant that has rows of it."""
    for kind, size, chance, answers, changes in _variants(learned, length):
        try:
            cls, values = changes.pop("type", type(learned)), _common(learned)
            task = cls(**values | changes | {"validation_rows": rows})
        except ConfigError:
            continue
        yield Point(suite, kind, make_task(task).length, size, chance, answers, task)


def _common(learned: Any) -> dict[str, Any]:
    """The fields that all variants of a task share with it."""
    names = {"symbols", "pairs", "shortest_period", "longest_period", "needles", "group"}
    return {field.name: getattr(learned, field.name) for field in dataclasses.fields(learned) if field.name in names}


Variant = tuple[str, int | None, float, range, dict[str, Any]]  # a point without its suite, length and task


def _variants(learned: DataConfig, length: int) -> Iterator[Variant]:
    match learned:
        case Recall() | HardRecall():
            values, pairs, most = range(learned.symbols // 2, learned.symbols), learned.pairs, length // 4
            yield "recall", pairs, 1 / pairs, values, {"type": Recall, "length": length}
            for kind, more in [
                ("noisy", {"noise": 2 * pairs}),
                ("stacked", {"passes": 2}),
                ("forgetting", {"updates": max(pairs // 2, 1)}),
            ]:
                yield kind, pairs, 1 / pairs, values, {"type": HardRecall, "length": length} | more
            yield "full of pairs", most, 1 / max(most, 1), values, {"type": Recall, "length": length, "pairs": most}
        case Copy():
            yield "copy", length // 2, 1 / learned.symbols, range(learned.symbols), {"length": length // 2}
        case Sort():
            yield "sort", (length + 1) // 2, 1 / learned.symbols, range(learned.symbols), {"length": (length + 1) // 2}
        case Induction():
            yield "induction", None, 1 / learned.symbols, range(learned.symbols), {"length": length}
        case Needle():
            values = range(learned.symbols // 2, learned.symbols)
            for n in dict.fromkeys((1, learned.needles)):
                kind = "one needle" if n == 1 else f"one of {n} needles"
                yield kind, n, 1 / len(values), values, {"length": length, "needles": n}
        case Track():
            states = make_task(learned).vocab_size  # the first state is its own input
            yield learned.group, None, (1 + (length - 1) / states) / length, range(0), {"length": length}
