"""Questions with known answers that a run is asked while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jax.sharding import Mesh

from gpt_jax.analysis.scoring import Scorer
from gpt_jax.analysis.suites import ANY_LENGTH, Measure, Result, ask_questions, ask_repeats, ask_task, measure_text
from gpt_jax.config import Config, Suites, Text, learned_positions
from gpt_jax.config.errors import UserError
from gpt_jax.data import Data
from gpt_jax.data.prompts import KINDS, Haystack, NoQuestion
from gpt_jax.data.suites import fitting, points
from gpt_jax.data.tasks import make_task
from gpt_jax.model.gpt import GPT
from gpt_jax.runs.loop import Watch
from gpt_jax.runs.metrics import SUITE
from gpt_jax.runs.suites import TEXT_SUITES, words_alone

Asked = Callable[[Scorer], Iterable[Result]]


def watch_suites(config: Config, data: Data, mesh: Mesh) -> list[Watch]:
    """Answers to the questions that a resolved configuration asks; none if it names no suite.

    `recall/noisy/accuracy` is the accuracy on a kind of question, or without the kind where it is called as the suite;
    `low` and `high` are the ends of its 95% interval, and `chance` the level of chance. The suite `text` has losses.
    Runs of one model share the programs.

    Raises:
      UserError: a suite is unknown, does not fit the run, or cannot be asked in rows of its length.
    """
    settings = config.suites
    if settings.names is None:
        return []
    longest = learned_positions(config.model) or ANY_LENGTH
    rows = min(config.evaluation.batch_size, settings.questions)
    score = Scorer(GPT(config.model), None, mesh, rows, longest)
    asked = list(_asked(config, data, score.rows))

    def measure(params: Any) -> dict[str, float]:
        scorer = score.of(params)
        return {name: value for ask in asked for result in ask(scorer) for name, value in scores(result).items()}

    return [Watch(SUITE, "questions of suites", settings.every, {"questions": settings.questions}, measure)]


def check_suites(config: Config, data: Data) -> None:
    """Raises as `watch_suites`."""
    if config.suites.names is not None:
        list(_asked(config, data, config.suites.questions))


def scores(result: Result) -> dict[str, float]:
    """A result by name."""
    kind = result.kind.replace(",", "").replace(" ", "_")
    place = "/".join(dict.fromkeys((result.suite, kind)))
    found = {result.measure: result.value, "low": result.low, "high": result.high}
    found |= {} if result.chance is None else {"chance": result.chance}
    return {f"{place}/{name}": value for name, value in found.items()}


def _asked(config: Config, data: Data, rows: int) -> Iterator[Asked]:
    learned, settings = config.data, config.suites
    names = _names(settings, learned)
    if not isinstance(learned, Text):
        trained, limit = make_task(learned).length, learned_positions(config.model)
        for name in names:
            for point in points(name, learned, settings.questions, [trained]):
                if limit is None or point.length <= limit:
                    yield _single(ask_task(rows, point, trained))
        return
    T, count, kept = data.row_length, settings.questions, words_alone(data, rows)
    for name in names:
        if name == "text":
            yield lambda scorer: measure_text(scorer, data, count)
            continue
        try:
            if name in KINDS:
                for kind in KINDS[name]:
                    yield _single(ask_questions(Haystack(kept, data.tokenizer), name, kind, T, count, T))
            else:
                yield _single(ask_repeats(rows, kept, name, T // 2 * 2, count, T))
        except NoQuestion as reason:
            raise UserError(
                f"the suite {name} cannot be asked in rows of {T:,} tokens: {reason}; leave it out of suites.names"
            ) from None


def _names(settings: Suites, learned: Any) -> list[str]:
    assert settings.names is not None
    names = list(dict.fromkeys(name.strip() for name in settings.names.split(",")))
    if isinstance(learned, Text):
        known, kind = list(TEXT_SUITES), "text"
    else:
        known, kind = fitting(learned), type(learned).__name__
    if wrong := [name for name in names if name not in known]:
        hint = f"choose among {', '.join(known)}" if known else "leave it at None"
        raise UserError(f'suites.names has "{wrong[0]}", which is no suite of a run on {kind}: {hint}')
    return names


def _single(measure: Measure) -> Asked:
    return lambda scorer: [measure(scorer)]
