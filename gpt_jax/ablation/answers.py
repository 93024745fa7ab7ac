"""The secondary endpoints of a study: which questions its suites ask, and what a trained run answers.

Every run is asked the same rows or questions, whatever its arm and seed, so that accuracies are paired as losses are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from gpt_jax.ablation.endpoint import Suite
from gpt_jax.ablation.schema import Answered
from gpt_jax.analysis.scoring import Scorer
from gpt_jax.analysis.suites import ANY_LENGTH, Result, measure_questions, measure_repeats, measure_task
from gpt_jax.config import Config, Text, learned_positions
from gpt_jax.config.errors import ConfigError, UserError, nearest
from gpt_jax.data import Data
from gpt_jax.data.prompts import CHOICES, KINDS, Haystack, NoQuestion, questions
from gpt_jax.data.suites import REPEATING, SUITES, Point, fitting, points
from gpt_jax.data.tasks import make_task
from gpt_jax.model.gpt import GPT
from gpt_jax.runs.suites import words_alone
from gpt_jax.training.sharding import make_mesh

ON_TEXT = (*KINDS, *REPEATING)
REPEATED = "repeated"  # the only kind of those that repeat


@dataclass(frozen=True)
class Case:
    """One secondary endpoint: questions of one kind and length. `point` is its task; None for questions about text."""

    suite: Suite
    kind: str
    length: int
    point: Point | None = None

    @property
    def name(self) -> str:
        """Its name in a report, such as "recall, noisy at 48"."""
        kind = "" if self.kind in (self.suite.name, REPEATED) else f", {self.kind}"
        return f"{self.suite.name}{kind} at {self.length:,}"

    @property
    def tokens(self) -> int:
        """The tokens that a run reads for it, at most."""
        choices = CHOICES if self.point is None and self.suite.name in KINDS else 1
        return self.length * self.suite.questions * choices


def cases(suites: Sequence[Suite], config: Config) -> tuple[Case, ...]:
    """The secondary endpoints of runs of the resolved `config`.

    Raises:
      ConfigError: a suite is unknown or does not fit the data, has no rows of a length, or is named twice.
    """
    found = []
    for suite in suites:
        if suite.name not in {*SUITES, *ON_TEXT}:
            hint = nearest(suite.name, {*SUITES, *ON_TEXT})
            raise ConfigError(f'there is no suite "{suite.name}" whose answers a study can count{hint}')
        for length, of_length in _by_length(suite, config):
            if missing := [kind for kind in suite.kinds if kind not in {case.kind for case in of_length}]:
                raise ConfigError(
                    f'the suite "{suite.name}" has no kind "{missing[0]}" at {length} tokens: there it has'
                    f" {', '.join(case.kind for case in of_length)}"
                )
            found += [case for case in of_length if not suite.kinds or case.kind in suite.kinds]
    names = [case.name for case in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f'the secondary endpoint "{name}" is named twice: name each suite and length once')
    return tuple(found)


def _by_length(suite: Suite, config: Config) -> Iterator[tuple[int, list[Case]]]:
    """The suite's lengths, and the cases of all kinds that it has at each."""
    of_text = isinstance(config.data, Text)
    known = ON_TEXT if of_text else fitting(config.data)
    if suite.name not in known:
        data = "text" if of_text else type(config.data).__name__
        hint = f"choose {', '.join(known)}" if known else "no suite asks about that task"
        raise ConfigError(f'the suite "{suite.name}" does not fit runs on {data}: {hint}')
    trained = config.model.context_length if of_text else make_task(config.data).length
    for length in suite.lengths or (trained,):
        yield length, _of_text_at(suite, length) if of_text else _of_task_at(suite, config, length)


def _of_task_at(suite: Suite, config: Config, length: int) -> list[Case]:
    try:
        asked = points(suite.name, config.data, suite.questions, [length])
    except UserError:
        raise ConfigError(
            f'the suite "{suite.name}" has no rows of {length} tokens for this task: choose larger lengths'
        ) from None
    return [Case(suite, point.kind, point.length, point) for point in asked]


def _of_text_at(suite: Suite, length: int) -> list[Case]:
    if suite.name in REPEATING:
        return [Case(suite, REPEATED, length // 2 * 2)]
    return [Case(suite, kind, length) for kind in KINDS[suite.name]]


def check_arms(
    suites: Sequence[Suite], configs: Mapping[str, Config], data: Mapping[str, Data], baseline: str
) -> tuple[Case, ...]:
    """The secondary endpoints of a study with these arms, each of which can be asked.

    Raises:
      ConfigError: as `cases`; an arm reads text otherwise than the baseline, or has too few positions; or the text or
        the length does not suffice for the questions.
    """
    found = cases(suites, configs[baseline])
    for name, config in configs.items() if found else ():
        if not data[name].is_task and (
            data[name].tokenizer.content_hash() != data[baseline].tokenizer.content_hash()
            or config.model.context_length != configs[baseline].model.context_length
        ):
            raise ConfigError(
                f'the arm "{name}" has another tokenizer or context than "{baseline}", and secondary endpoints ask all'
                " arms the same questions: leave secondary out, or give all arms the same"
            )
        limit = learned_positions(config.model)
        for case in found:
            if limit is not None and case.length > limit:
                raise ConfigError(
                    f'the secondary endpoint "{case.name}" has rows of {case.length} tokens, and the arm "{name}" has'
                    f" learned {limit} positions: give it a longer table, or choose shorter lengths"
                )
    of_text = [case for case in found if case.point is None]
    ids = words_alone(data[baseline], 64) if of_text else np.empty(0, np.int32)
    for case in of_text:
        try:
            if case.suite.name in KINDS:
                hay = Haystack(ids, data[baseline].tokenizer)
                questions(hay, case.suite.name, case.kind, case.length, case.suite.questions)
            elif case.length < 4:
                raise NoQuestion("a row that repeats has 4 tokens or more")
        except (NoQuestion, UserError) as reason:
            raise ConfigError(f'the secondary endpoint "{case.name}" cannot be asked: {reason}') from None
    return found


def ask(suites: Sequence[Suite], config: Config, params: Any, data: Data) -> dict[str, Answered]:
    """The answers of a run of the resolved `config`, with parameters under canonical names, by endpoint."""
    asked = cases(suites, config)
    if not asked:
        return {}
    model, mesh = dataclasses.replace(config.model, scan=False), make_mesh(jax.local_devices()[:1])
    longest = learned_positions(model) or ANY_LENGTH
    score = Scorer(GPT(model), params, mesh, config.evaluation.batch_size, longest)
    ids = words_alone(data, score.rows) if asked[0].point is None else np.empty(0, np.int32)
    found = {}
    for case in asked:
        if case.point is None:
            result = _of_text(case, score, data, ids)
        else:
            result = measure_task(score, case.point, data.row_length)
        assert result.chance is not None
        found[case.name] = Answered(result.value, result.low, result.chance, result.rows)
    return found


def _of_text(case: Case, score: Scorer, data: Data, ids: np.ndarray) -> Result:
    """A haystack of its own for each case: which questions it asks does not depend on the other cases."""
    suite, trained = case.suite, data.row_length
    if suite.name in REPEATING:
        return measure_repeats(score, ids, suite.name, case.length, suite.questions, trained)
    hay = Haystack(ids, data.tokenizer)
    return measure_questions(score, hay, suite.name, case.kind, case.length, suite.questions, trained)
