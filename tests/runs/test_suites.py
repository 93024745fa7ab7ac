"""A run is asked suites by one command, whose files say what its table says; the page of docs is what the code does."""

import csv
import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from configs.mixers import MIXERS, TASKS, get_config
from gpt_jax import GPT
from gpt_jax.analysis.cost import count_parameters
from gpt_jax.config import Attention, Config, Copy, Embedding, Learned, LinearAttention, Rope, Suites, Text, Window
from gpt_jax.config.conversion import from_config_dict
from gpt_jax.config.errors import UserError
from gpt_jax.data import open_data
from gpt_jax.data.prompts import CHOICES, KINDS
from gpt_jax.data.suites import SUITES, points
from gpt_jax.data.tokenizer import ByteTokenizer
from gpt_jax.runs.folder import ENVIRONMENT
from gpt_jax.runs.suites import PICTURE, QUESTIONS, RESULTS, TABLE, TEXT_SUITES, evaluate_suites, words_alone
from gpt_jax.runs.train import train
from gpt_jax.runs.write import write_run
from tests.analysis.test_suites import TEXT
from tests.experiments.test_train_cli import many
from tests.tiny import PROGRAMS, random_params, tiny, tiny_config

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
COMMANDS_OF: dict[str, list[list[str]]] = {}
for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL):
    _, _, module, *arguments = shlex.split(block)
    COMMANDS_OF.setdefault(module.removeprefix("experiments."), []).append(arguments)


def records(folder: Path) -> list[dict]:
    found = json.loads((folder / RESULTS).read_text())["results"]
    with (folder / TABLE).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["value"] for row in rows] == [str(record["value"]) for record in found]
    assert (folder / PICTURE).read_bytes().startswith(b"\x89PNG")
    return found


def test_a_run_on_text_takes_the_suites_of_text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    model = GPT(tiny(LinearAttention(heads=2), layers=1, vocab_size=257, context_length=128))
    write_run(tmp_path / "run", model, random_params(model), ByteTokenizer(), text=str(tmp_path / "text.txt"))
    with pytest.warns(UserWarning) as told:
        results = evaluate_suites(tmp_path / "run", TEXT_SUITES, questions=6, lengths=[60, 250, 251, 60])
    said = [str(warning.message) for warning in told]
    asked = {(r.suite, r.kind, r.length) for r in results}
    assert len(asked) == len(results)  # each once
    for suite, kind in ((suite, kind) for suite, kinds in KINDS.items() for kind in kinds):
        left_out = f"{suite}, {kind}: nothing is asked at 60 tokens: " in " ".join(said)
        assert (suite, kind, 250) in asked and ((suite, kind, 60) in asked) != left_out
    found = records(tmp_path / "run")
    assert {record["suite"] for record in found} == set(TEXT_SUITES) and len(found) == len(results)
    for record in found:
        assert record["low"] <= record["value"] <= record["high"] and record["arm"] == "run"
        assert record["trained"] == (record["length"] <= 128)
        assert (record["measure"] == "loss") == (record["suite"] == "text") == (record["chance"] is None)
    with pytest.raises(UserError, match="the suite sort is of symbols"):
        evaluate_suites(tmp_path / "run", ["sort"])
    with pytest.raises(UserError, match='no suite "reall": choose among recall'):
        evaluate_suites(tmp_path / "run", ["reall"])
    evaluate_suites(tmp_path / "run", ["text"])
    assert not (tmp_path / "run" / PICTURE).exists()  # has no accuracies, and the old one is of other questions
    with pytest.warns(UserWarning, match="8 tokens"), pytest.raises(UserError, match="no question can be asked"):
        evaluate_suites(tmp_path / "run", ["needle"], lengths=[8])
    environment = tmp_path / "run" / ENVIRONMENT
    began = json.loads(environment.read_text())
    began["hashes"]["data"] = "0" * 64  # as if the text had changed: what is held out now may have been trained on
    environment.write_text(json.dumps(began))
    with pytest.raises(UserError, match="the text or the tokenizer is not the one"):
        evaluate_suites(tmp_path / "run", ["text"])


def test_the_haystack_has_no_ends_of_documents(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"document {i}")
    data = open_data(Text(path=str(tmp_path)), 16, 0, progress=False)
    end = data.tokenizer.end_of_text
    assert any((batch.targets == end).any() for batch in data.validation(4))
    kept = words_alone(data, 4)
    assert len(kept) and end not in kept and "document" in data.tokenizer.decode(kept.tolist())


def test_a_text_of_few_words_is_refused_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt_jax.runs.suites.measure_text", lambda *_: pytest.fail("asked"))
    (tmp_path / "text.txt").write_text("one two " * 900)
    model = GPT(tiny(LinearAttention(heads=2), layers=1, vocab_size=257, context_length=128))
    write_run(tmp_path / "run", model, random_params(model), ByteTokenizer(), text=str(tmp_path / "text.txt"))
    with pytest.raises(UserError, match="has 0 different words .* leave out the suites needle, ruler, recall"):
        evaluate_suites(tmp_path / "run", ["text", "needle"])


def test_a_run_on_a_task_takes_its_suite_as_far_as_it_has_positions(tmp_path: Path) -> None:
    config = tiny_config(model={"embedding": Embedding(Learned()), "blocks": tiny(Attention(heads=2), layers=1).blocks})
    train(config, tmp_path / "run", console=Console(quiet=True), programs=PROGRAMS)
    results = evaluate_suites(tmp_path / "run", ["copy"], questions=20)
    assert isinstance(config.data, Copy)
    assert [(r.length, r.trained) for r in results] == [(4, True), (8, True), (16, False)]  # 32 exceeds the table of 16
    with pytest.raises(UserError, match="positions"):
        evaluate_suites(tmp_path / "run", ["copy"], lengths=[32])
    with pytest.raises(UserError, match="of text, and this run learned Copy"):
        evaluate_suites(tmp_path / "run", ["ruler"])


@pytest.mark.slow
def test_one_command_gives_the_curves_of_mixers(tmp_path: Path) -> None:
    flags = ["--mixers=linear", "--tasks=induction", "--questions=8", "--steps=1"]
    wrong = [f"--workdir={tmp_path}/other", "--mixers=attention,foo", "--tasks=recall"]
    lines = [[f"--workdir={tmp_path}/runs", *flags], wrong]
    (code, out, err), refused = many(tmp_path, tmp_path / "out", "curves", lines)
    assert code == 0, err
    assert refused[0] == 2 and 'no "foo_recall"' in refused[2]
    assert not (tmp_path / "other" / "attention-recall").exists()  # refused before anything is trained
    found = records(tmp_path / "runs")
    assert {(record["arm"], record["suite"]) for record in found} == {("linear", "induction")}
    assert {record["length"] for record in found} == {48, 96, 192}  # rows of 24 repeat nothing of the longest period
    assert "linear on induction" in out and "parameters: linear" in out


def test_mistakes_on_the_command_line_are_told(tmp_path: Path) -> None:
    lines = {
        "leave out --data": ["--workdir=none", "--suite=copy", "--data=text.txt"],
        "--lengths must be numbers": ["--workdir=none", "--suite=copy", "--lengths=8,x"],
        "--lengths and --questions need --suite": ["--workdir=none", "--questions=50"],
        "there is no folder": [f"--workdir={tmp_path}/none", "--suite=copy"],
    }
    ended = many(tmp_path, tmp_path / "out", "evaluate", [*lines.values(), *COMMANDS_OF["evaluate"]])
    for said, (code, _, err) in zip(lines, ended, strict=False):
        assert code == (1 if "folder" in said else 2) and said in err and len(err.splitlines()) == 1, err
    for code, _, err in ended[len(lines) :]:  # the page's own, in a place where their runs are not
        assert code == 1 and "there is no folder" in err, err


def test_the_page_says_what_the_code_does() -> None:
    assert COMMANDS_OF.keys() == {"evaluate", "curves", "harness", "likelihood", "train"}
    assert f"every {Suites().every} steps" in PAGE and f"{Suites().questions} questions of each kind" in PAGE
    for names in (SUITES, TEXT_SUITES):
        assert all(f"`{name}`" in PAGE for name in names)
    assert f"({QUESTIONS})" in PAGE and f"of {CHOICES} words | 1/{CHOICES}" in PAGE
    assert MIXERS["window"] == Attention(heads=2, mask=Window(8), position=Rope())
    assert all(f"`{name}`" in PAGE for name in (RESULTS, TABLE, PICTURE))
    (task,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    harness = (ROOT / "tests" / "runs" / "test_harness.py").read_text()  # which runs it
    assert task.split("\n", 2)[2].replace("documents.jsonl", "DATA") in harness
    models = [from_config_dict(Config, get_config(f"{mixer}_{name}")).model for mixer in MIXERS for name in TASKS]
    assert {(model.layers, model.width) for model in models} == {(2, 64)}


def mixers_table(rows: list[dict[str, str]]) -> str:
    """The page's table, of the accuracies and the chance at 48 and 192 tokens in the file of results."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    lines = [f"| asked | {' | '.join(arms)} | chance |", "|" + "---|" * (len(arms) + 2)]
    for kind in ("recall", "noisy", "forgetting", "one of 4 needles", "induction"):
        found = [{r["length"]: r for r in rows if (r["arm"], r["kind"]) == (arm, kind)} for arm in arms]
        cells = [[float(of[length]["value"]) for length in ("48", "192")] for of in found]
        cells.append([float(found[0][length]["chance"]) for length in ("48", "192")])
        name = "recall of 8 pairs" if kind == "recall" else kind
        lines.append(f"| {name} | {' | '.join(f'{trained:.2f}, {far:.2f}' for trained, far in cells)} |")
    return "\n".join(lines)


def test_the_table_of_mixers_is_that_of_the_results() -> None:
    with (ROOT / "docs" / "gallery" / "mixers" / TABLE).open() as file:
        rows = list(csv.DictReader(file))
    assert {row["arm"] for row in rows} == set(MIXERS) and mixers_table(rows) in PAGE
    for name, task in TASKS.items():  # the results are of these points, at these levels of chance
        own = from_config_dict(Config, get_config(f"delta_{name}")).data
        assert own == task
        for point in points(name, own, QUESTIONS):
            of = [r for r in rows if (r["kind"], int(r["length"])) == (point.kind, point.length)]
            assert len(of) == len(MIXERS) and all(float(r["chance"]) >= point.chance for r in of)
            assert {int(r["rows"]) for r in of} == {QUESTIONS}


def test_the_mixers_are_of_equal_size() -> None:
    models = {from_config_dict(Config, get_config(f"{mixer}_recall")).model for mixer in MIXERS}
    sizes = [count_parameters(dataclasses.replace(model, vocab_size=32))[0] for model in models]
    assert len(sizes) == len(MIXERS) and max(sizes) <= 1.001 * min(sizes)
