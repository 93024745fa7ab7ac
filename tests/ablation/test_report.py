"""A report says what its results say, in one file that needs nothing else, whatever is missing or is in a name."""

import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from gpt_jax.ablation.findings import ArmResults, StudyResults
from gpt_jax.ablation.latex import to_latex
from gpt_jax.ablation.method import paragraph
from gpt_jax.ablation.pictures import pictures
from gpt_jax.ablation.records import from_json
from gpt_jax.ablation.report import publish, to_html, to_markdown, write_pages, write_report
from gpt_jax.ablation.schema import Rules, StudyRecord
from gpt_jax.ablation.table import changes_text
from gpt_jax.ablation.table_csv import to_csv
from gpt_jax.ablation.verdict import compare_arms
from gpt_jax.config.errors import ConfigError
from gpt_jax.pages.standalone import ZOOM
from tests.ablation import made_up
from tests.ablation.rasters import PNG, as_pixels, no_pixels

__all__ = ["no_pixels"]  # for every test here
NASTY = "<script>alert(1)</script>\"'&|`*_$title ${body}"


class Page(HTMLParser):
    """Tags, attributes and texts of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self._in_arms = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self._in_arms = dict(attrs).get("id") == "arms"
        elif tag == "tr" and self._in_arms:
            self.rows.append([])
        elif tag in ("td", "th") and self._in_arms:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._in_arms and self.rows and self.rows[-1] and self.lasttag not in ("small",):
            self.rows[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._in_arms = False

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def figures(self) -> set[str | None]:
        return {attributes["id"] for tag, attributes in self.tags if tag == "figure"}


def complete(results: dict[str, Any]) -> StudyResults:
    return from_json(StudyResults, json.loads(json.dumps(results)), "results.json")


def html_of(results: dict[str, Any]) -> str:
    return to_html(complete(results))


def visible(source: str) -> str:
    """The page without its style and its script."""
    return re.sub(r"<(style|script)>.*?</\1>", "", source, flags=re.DOTALL)


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    return made_up.study()


@pytest.fixture(scope="module")
def source(study: dict[str, Any]) -> str:
    return html_of(study)


@pytest.fixture
def fresh(study: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(study))


def test_the_files_lie_beside_the_results(tmp_path: Path, study: dict[str, Any]) -> None:
    (tmp_path / "results.json").write_text(json.dumps(study))
    path = write_report(str(tmp_path))
    assert path == str(tmp_path / "report.html")
    names = {"results.json", "report.html", "report.md", "results.csv", "export"}
    assert {file.name for file in tmp_path.iterdir()} == names
    assert Path(path).read_text("utf-8").startswith("<!doctype html>")


def test_the_page_loads_nothing(source: str) -> None:
    page = Page(source)
    assert not {"link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    assert not {"src", "srcset", "xlink:href"} & {name for _, attributes in page.tags for name in attributes}
    links = {attributes["href"] for _, attributes in page.tags if "href" in attributes}
    assert links and all(re.fullmatch(r"export/[\w-]+\.\w+", link or "") for link in links)
    assert "http:" not in source.replace("http-equiv", "") and "https:" not in source
    assert "@import" not in source and "url(" not in source
    (policy,) = (a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")


def test_question_and_verdict_come_first(source: str, study: dict[str, Any]) -> None:
    text = visible(source)
    assert text.index(study["question"]) < text.index(study["verdict"]) < text.index("<table") < text.index("<figure")


def figure_of(source: str, name: str) -> str:
    (figure,) = re.findall(rf'<figure id="{name}">.*?</figure>', source, re.DOTALL)
    return str(figure)


def signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def test_every_arm_is_in_the_table_with_its_figures(source: str, study: dict[str, Any]) -> None:
    head, *rows = Page(source).rows
    assert head[:5] == ["arm", "Δ", "p", "verdict", "final validation loss"]
    assert [row[0].removesuffix(" baseline") for row in rows] == [arm["name"] for arm in study["arms"]]
    for row, arm in zip(rows, study["arms"], strict=True):
        low, high = arm["interval"]
        assert row[4] == f"{arm['mean']:.4f} ± {(high - low) / 2:.4f}"
        assert row[head.index("KV bytes/token")] == f"{arm['kv_bytes_per_token']:,}"
        assert row[head.index("tokens")] == "1.54 M" and row[head.index("failed")] == "0 of 8"
        if (versus := arm["versus_baseline"]) is not None:
            assert row[1] == signed(versus["mean"]) and row[3] == versus["verdict"]
            assert row[head.index("robust Δ")] == signed(versus["robust"])
            assert row[head.index("pairing’s r")] == f"{versus['correlation']:.2f}"
            assert row[head.index("SD of Δ")] == f"{versus['std']:.4f}"
            ends = versus["population_interval"]
            assert row[head.index("for text like this")] == f"{signed(ends[0])} to {signed(ends[1])}"


def test_the_interval_that_decides_stands_below_the_difference(source: str, study: dict[str, Any]) -> None:
    cells = re.findall(r'<td class="delta" [^>]*>([^<]*)<small>([^<]*)</small>', source)
    wanted = [(v["mean"], v["interval"]) for arm in study["arms"] if (v := arm["versus_baseline"])]
    for mean, (low, high) in wanted:
        assert (signed(mean), f"{signed(low)} to {signed(high)}") in cells
    alone = [v["t_interval"] for arm in study["arms"] if (v := arm["versus_baseline"])]
    assert all(f"for this arm alone: {signed(low)} to {signed(high)}" in source for low, high in alone)


def test_markdown_and_csv_agree_with_the_results(study: dict[str, Any]) -> None:
    markdown = to_markdown(complete(study))
    table = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("| ")]
    rows = list(csv.DictReader(io.StringIO(to_csv(complete(study)))))
    assert len(rows) == len(study["arms"])
    for arm, row, cells in zip(study["arms"], rows, table[2:], strict=False):
        assert row["arm"] == cells[0] == arm["name"]
        assert float(row["mean"]) == arm["mean"] and cells[4].startswith(f"{arm['mean']:.4f}")
        assert int(row["kv_bytes_per_token"]) == arm["kv_bytes_per_token"]
        assert [float(row[f"loss_seed_{seed}"]) for seed in study["seeds"]] == list(arm["losses"].values())
        assert [float(row[f"value_seed_{seed}"]) for seed in study["seeds"]] == list(arm["values"].values())
        assert json.loads(row["changes"]) == arm["changes"] and row["failed"] == "0"
        if (versus := arm["versus_baseline"]) is not None:
            assert float(row["difference_mean"]) == versus["mean"]
            assert float(row["difference_interval_high"]) == versus["interval"][1]
            assert float(row["difference_t_interval_high"]) == versus["t_interval"][1]
            assert float(row["difference_robust"]) == versus["robust"] and float(row["p"]) == versus["p"]
            assert row["verdict"] == cells[3].split(" (")[0] == versus["verdict"]
    assert study["question"] in markdown and study["verdict"] in markdown
    assert f"    {study['repeat']['command']}\n" in markdown


def test_only_columns_named_for_it_depend_on_clock_and_machine(fresh: dict[str, Any], study: dict[str, Any]) -> None:
    for arm in fresh["arms"]:
        for key in (k for k in arm if k.startswith("measured_")):
            arm[key] *= 1.5
        for run in arm["runs"]:
            run["wall_seconds"] += 3
            run["folder"] = f"elsewhere/{run['folder']}"
    fresh["repeat"]["wall_seconds"] = 1.0
    before, after = (list(csv.DictReader(io.StringIO(to_csv(complete(r))))) for r in (study, fresh))
    changed = {name for a, b in zip(before, after, strict=True) for name in a if a[name] != b[name]}
    assert changed and all(re.fullmatch(r"measured_.*|.*_seconds|.*_per_second", name) for name in changed)


def test_names_from_users_are_text(fresh: dict[str, Any]) -> None:
    for arm in fresh["arms"][1:]:
        arm["name"] += NASTY
        arm["changes"] = {NASTY: NASTY}
        arm["versus_baseline"] |= {"verdict": NASTY, "reason": NASTY, "outliers": [NASTY]}
        arm["leaves"] = [{"key": NASTY, "baseline": NASTY, "arm": NASTY, "asked_by": "arm"}]
        arm["accuracy_by"]["label"] = NASTY
        arm["runs"][0] |= {"folder": NASTY, "status": NASTY, "config_hash": NASTY}
    fresh |= {"question": NASTY, "verdict": NASTY, "budget": {"match": NASTY, "field": NASTY}}
    fresh |= {"metric": NASTY, "unit": NASTY, "marks": [NASTY], "devices": [NASTY]}
    fresh["log"][0] |= {"time": NASTY, "what": NASTY, "text": NASTY}
    fresh["contrasts"][0] |= {"name": NASTY, "kind": NASTY}
    fresh["repeat"] |= {"command": NASTY, "git": NASTY, "failures": [NASTY], "configs": {NASTY: {NASTY: NASTY}}}
    source = html_of(fresh)
    page = Page(source)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(NASTY) > 20
    for arm in fresh["arms"]:
        assert any(row[0].startswith(arm["name"]) for row in page.rows)
    markdown = to_markdown(complete(fresh))
    outside = [line for line in markdown.splitlines() if not line.startswith("    ")]
    assert not any("<script" in line for line in outside)
    widths = {len(re.split(r"(?<!\\)\|", line)) for line in outside if line.startswith("| ") and "kv" not in line}
    assert len(widths) <= 6  # one for each table: no name added a column
    latex = to_latex(complete(fresh))
    assert len({len(re.split(r"(?<!\\)&", line)) for line in latex.splitlines() if line.endswith(r" \\")}) == 1
    assert not re.search(r"(?<!\\)[_#%](?!.*Needs)", latex.split("\n", 1)[1].replace("%\n", "\n"))
    for picture in pictures(complete(fresh))[0]:
        ElementTree.fromstring(picture.svg())


def test_pictures_are_well_formed_and_drawn_twice(source: str) -> None:
    whole = re.findall(r"(<svg class=.*?</svg>)(?=<svg class=|</figure>)", source, re.DOTALL)
    assert [picture.split('"')[1] for picture in whole] == ["wide", "narrow"] * 12
    for picture in whole:
        root = ElementTree.fromstring(picture)
        numbers = [v for e in root.iter() for k, v in e.items() if k in ("x", "y", "x1", "y1", "x2", "y2", "cx", "cy")]
        assert all(math.isfinite(float(v)) for v in numbers)
        assert "nan" not in picture


REMOVED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "forest": lambda arm: arm.update(versus_baseline=None),
    "tuning": lambda arm: arm.update(tuned=None),
    "validation-curves": lambda arm: arm["curves"].pop("validation"),
    "train-curves": lambda arm: arm["curves"].update(train=None),
    "learning-rate": lambda arm: arm.update(by_learning_rate=None),
    "position": lambda arm: arm.update(loss_by_position=None),
    "extrapolation": lambda arm: arm.pop("extrapolation"),
    "accuracy": lambda arm: arm.update(accuracy_by=None),
    "pareto": lambda arm: arm.update(kv_bytes_per_token=None),
}
WORDS = {
    "forest": "forest of differences",
    "tuning": "tuning of the learning rate",
    "validation-curves": "validation loss over training",
    "train-curves": "training loss",
    "learning-rate": "loss against learning rate",
    "position": "loss by position",
    "extrapolation": "length extrapolation",
    "accuracy": "accuracy",
    "pareto": "endpoint against KV bytes",
}


@pytest.mark.parametrize("figure", REMOVED)
def test_what_was_not_measured_is_left_out_and_named(fresh: dict[str, Any], source: str, figure: str) -> None:
    whole = Page(source)
    assert figure in whole.figures() and "Not measured" not in whole.text
    for arm in fresh["arms"]:
        REMOVED[figure](arm)
    page = Page(html_of(fresh))
    gone = {figure} | ({"gap"} if figure == "validation-curves" else set())
    assert page.figures() == whole.figures() - gone
    named = [text for text in page.texts if text.startswith("Not measured: ")]
    assert any(WORDS[figure] in text for text in named)
    assert WORDS[figure] in to_markdown(complete(fresh))


def test_columns_without_a_value_are_left_out_and_named(fresh: dict[str, Any]) -> None:
    for arm in fresh["arms"]:
        arm |= {"measured_peak_bytes": None, "flops_per_token": None, "diagnostics": {"sink_mass": 0.1}}
    page = Page(html_of(fresh))
    assert not {"peak memory", "FLOPs/token"} & set(page.rows[0])
    assert "Not measured: FLOPs/token, peak memory." in page.text
    assert "Not measured: attention entropy, largest logit, gradient norm, skipped steps." in page.text


def test_one_arm_and_one_seed() -> None:
    page = Page(html_of(made_up.study(names=("only",), seeds=1)))
    assert "One seed: there are no intervals and no tests" in page.text
    cell = page.rows[1][page.rows[0].index("final validation loss")]
    assert cell == "1.5332" and "±" not in cell
    assert not {"forest", "contrasts", "gap", "pareto"} & page.figures()


def test_two_arms_of_one_seed_have_a_difference_without_an_interval() -> None:
    page = Page(html_of(made_up.study(names=("a", "b"), seeds=1)))
    assert "forest" in page.figures() and "One seed: no intervals." in page.text
    assert page.rows[2][1] == "−0.0019"


LINES = ("validation-curves", "train-curves", "gap", "position", "extrapolation", "accuracy")


def test_of_an_arm_with_failed_seeds_nothing_is_shown_but_its_failures() -> None:
    study = made_up.study(lost={"mqa": (1, 5)})
    source = html_of(study)
    page = Page(source)
    assert "Seeds failed: mqa (2 of 8). These arms have no mean" in page.text
    head, *rows = page.rows
    row = next(row for row in rows if row[0].startswith("mqa") and "window" not in row[0])
    assert row[1] == "–" and row[3] == "not ranked" and row[head.index("failed")] == "2 of 8"
    assert row[head.index("final validation loss")] == "–" == row[head.index("robust Δ")]
    for name in (*LINES, "forest", "pareto"):
        drawn = figure_of(source, name)
        assert ">gqa2<" in drawn and not re.search(r'>mqa<|>mqa: |data-name="mqa"', drawn), name
    assert "Not drawn, because seeds failed: mqa." in page.text
    survivors = [value for value in study["arms"][2]["losses"].values() if value is not None]
    mean = sum(survivors) / len(survivors)
    assert f"{mean:.4f}" not in source and f"{mean:.4f}" not in to_markdown(complete(study))
    rows = list(csv.DictReader(io.StringIO(to_csv(complete(study)))))
    lost = rows[2]
    assert lost["mean"] == lost["difference_mean"] == lost["loss_seed_1"] == "" and lost["runs_diverged"] == "2"
    assert lost["failed"] == "2" and 0 < float(lost["failed_interval_low"]) < 0.25


def test_a_rate_at_which_a_seed_failed_is_a_cross_and_no_mean(fresh: dict[str, Any], source: str) -> None:
    assert source.count("gqa2, 0.03: failed") == 2  # in the wide picture and in the narrow one
    fresh["arms"][1]["by_learning_rate"]["0.01"] = [1.55, None, 1.56]
    before, after = figure_of(source, "learning-rate"), figure_of(html_of(fresh), "learning-rate")
    assert after.count("gqa2, learning rate 0.01: 1 of 3 failed") == 2
    assert "gqa2, learning rate 0.01: 1.5" not in after and "gqa2, learning rate 0.01: 1.5" in before


def with_outlier(results: StudyResults, size: float) -> StudyResults:
    """The same study, but seed 3 of the second arm ended so much higher."""
    arm = results.arms[1]
    value = arm.values["3"]
    assert value is not None
    arm = dataclasses.replace(arm, values={**arm.values, "3": value + size})
    record = StudyRecord(
        **{field.name: getattr(results, field.name) for field in dataclasses.fields(Rules)},
        question=results.question,
        baseline=results.baseline,
        seeds=results.seeds or (),
        arms=(),
        runs=(),
    )
    arms = compare_arms([results.arms[0], arm, *results.arms[2:]], record)
    return dataclasses.replace(results, arms=arms)


def test_an_outlier_does_not_hide_the_margin_and_is_named() -> None:
    source = to_html(with_outlier(made_up.results(), 3.0))
    assert "Outliers among the differences: gqa2 (seed 3)." in source
    figure = figure_of(source, "forest")
    wide = figure[figure.index('<svg class="wide"') : figure.index('<svg class="narrow"')]
    (margin,) = re.findall(r'<rect x="[-\d.]+" y="[\d.]+" width="([\d.]+)"[^>]*class="region"', wide)
    assert float(margin) > 40  # pixels; on an axis up to 3 nats it would have 1
    assert re.search(r'class="beyond">mean, seed 3 →', wide) or re.search(r'class="beyond">seed 3 →', wide)
    assert "An arrow at the edge names what lies beyond the axis." in figure


def test_a_smoke_test_is_stamped(fresh: dict[str, Any], source: str) -> None:
    stamp = "smoke test: decides nothing"
    assert stamp not in source.lower()
    fresh |= {"is_smoke": True, "marks": ["a smoke test: decides nothing"]}
    stamped = visible(html_of(fresh))
    assert stamped.index('<p class="banner">Smoke test: decides nothing.') < stamped.index("<table")
    assert stamped.count('class="mark"') == 0  # the banner says it
    assert stamped.count('class="stamp"') == 24 and 'class="watermark"' in stamped
    for text in (to_markdown(complete(fresh)), to_latex(complete(fresh)), paragraph(complete(fresh))):
        assert stamp in text.lower()
    assert all(stamp in picture.svg() for picture in pictures(complete(fresh))[0])
    assert {row["is_smoke"] for row in csv.DictReader(io.StringIO(to_csv(complete(fresh))))} == {"True"}


def test_marks_and_facts_stand_above_the_table(source: str, study: dict[str, Any]) -> None:
    text = visible(source)
    top = text[text.index(study["verdict"]) : text.index("<table")]
    assert top.index('<p class="mark">The endpoint was changed after 8 runs had finished.</p>') < top.index("<dl")
    for fact in (
        "final validation loss (nats per token); all else is secondary",
        "5 planned, 8 seen, at most 12",
        "1,000",
        "12 rows",
        "128 tokens",
        "1,536,000",
        "111,488 tokens",
        "float32",
        "TPU v5 lite",
        "6 settings for each arm, 30 in all",
        "3 of 3 repeated runs bit-equal",
    ):
        assert f"<dd>{fact}</dd>" in top, fact
    assert "A/A" not in source


def test_a_forced_arm_is_told_wherever_it_is_copied_from(fresh: dict[str, Any]) -> None:
    """The page's table, Markdown, CSV, and what a paper takes: LaTeX and the methods, which are matched else."""
    said = "ranked by --force though its params are 1.314 × the baseline’s"
    fresh["is_forced"], fresh["marks"] = True, ["mqa is ranked though its params are 1.31 × the baseline’s, by --force"]
    fresh["arms"][2]["budget_ratio"] = 1.314
    fresh["arms"][2]["versus_baseline"]["reason"] = said
    results = complete(fresh)
    row = next(row for row in re.findall("<tr>.*?</tr>", html_of(fresh)) if "<b>mqa</b>" in row)
    assert f"<small>{said}</small>" in row and f"({said})" in to_markdown(results)
    assert list(csv.DictReader(io.StringIO(to_csv(results))))[2]["reason"] == said
    assert r"Mqa is ranked though its params are 1.31 $\times$ the baseline's, by --force." in to_latex(results)
    assert "Off the budget and ranked all the same: mqa (1.314 ×)." in paragraph(results)
    assert "ranked all the same" not in paragraph(made_up.results())


def test_the_methods_count_changes_after_results_only(fresh: dict[str, Any]) -> None:
    early = {"time": "2026-03-01T07:00:00Z", "what": "change", "text": "the margin: 0.02 → 0.01", "runs_done": 0}
    fresh["log"].insert(0, early)
    assert "The claim was changed 1 time after runs had finished." in paragraph(complete(fresh))


def test_times_name_their_machine_and_what_shared_it(fresh: dict[str, Any], source: str) -> None:
    assert "Times and memory are of TPU v5 lite. 2 processes shared the machine, so they are not comparable." in source
    fresh["jobs"] = 1
    alone = html_of(fresh)
    assert "Times and memory are of TPU v5 lite." in alone and "shared the machine" not in alone


def test_short_names_of_changes_are_not_alike() -> None:
    """Two settings with one last name keep their parents; what an arm switches off comes after what it chooses."""
    relative, absolute = "model.attention.position.type", "model.embedding.position.type"
    learned = ArmResults(name="learned", changes={relative: "none", absolute: "Learned", "model.mlp.width": 80})
    said = "embedding.position = Learned, mlp.width = 80, attention.position = none"
    assert changes_text(learned) == said
    assert changes_text(ArmResults(name="alibi", changes={relative: "Alibi"})) == "position = Alibi"
    hybrid = {"model.attention.mask.type": "Window", "model.letters.B.attention.mask.type": "Causal"}
    assert changes_text(ArmResults(name="b", changes=hybrid)) == "attention.mask = Window, B.attention.mask = Causal"


def test_a_sweep_names_all_its_rates(fresh: dict[str, Any]) -> None:
    for arm in fresh["arms"]:
        arm |= {"tuned": None, "learning_rate": 0.01, "by_learning_rate": {"0.1": [2.0], "0.001": [2.1], "0.01": [1.9]}}
    page = html_of(fresh)
    assert "0.001, 0.01, 0.1, each in all arms" in page and "0.01 for all arms" not in page
    assert "trained at each of the learning rates 0.001, 0.01 and 0.1." in page and "Nothing was tuned" not in page
    for arm in fresh["arms"]:
        arm |= {"by_learning_rate": {"0.01": [1.9]}}
    assert "0.01 for all arms" in html_of(fresh)


def test_arms_that_differ_in_their_layers_alone_are_told_apart(fresh: dict[str, Any]) -> None:
    for arm, layers in zip(fresh["arms"][1:3], ([0, 2], [1]), strict=True):
        arm["leaves"] = [{"key": "model.attention.mask.type", "baseline": "Causal", "arm": "Window", "layers": layers}]
    for page in (html_of(fresh), to_markdown(complete(fresh)).replace("\\", "")):
        assert "model.attention.mask.type in layers 0, 2" in page and "model.attention.mask.type in layer 1" in page


def test_contrasts_tuning_and_the_log_have_their_tables(source: str, study: dict[str, Any]) -> None:
    kinds = {contrast["kind"] for contrast in study["contrasts"]}
    assert kinds == {"pair", "interaction"}
    for contrast in study["contrasts"]:
        assert f">{contrast['name']}</td>" in source and signed(contrast["versus"]["mean"]) in source
    assert "0.003, weight decay 0.1, warm-up 100" in source
    places = [source.index(f"<time>{event['time']}</time>") for event in study["log"]]
    assert places == sorted(places) and source.count("runs done</small>") == len(study["log"])


def test_values_alone_make_a_page(tmp_path: Path) -> None:
    """As `experiments.judge` has them: no runs, no configurations, no setup."""
    known = made_up.results()
    arms = tuple(
        ArmResults(
            **{f: getattr(arm, f) for f in ("name", "values", "mean", "std", "n", "interval", "versus_baseline")}
        )
        for arm in known.arms
    )
    bare = StudyResults(question="Which?", baseline="mha", smallest_difference=0.01, arms=arms, verdict=known.verdict)
    path = Path(write_pages(bare, tmp_path / "new"))
    page = Page(path.read_text("utf-8"))
    assert page.figures() == {"forest"} and "not finished" not in page.text
    assert "To repeat it" not in page.text and "Determinism check" not in page.text
    missing = "".join(text for text in page.texts if text.startswith("Not measured: "))
    assert "parameters" in missing and "training loss" in missing
    assert "othing was tuned" not in page.text  # nobody knows
    assert page.rows[0][:5] == ["arm", "Δ", "p", "verdict", "final validation loss"]
    assert {"forest.svg", "forest.png", "table.tex", "table.csv", "methods.md", "methods.txt"} == {
        file.name for file in (tmp_path / "new" / "export").iterdir()
    }


def test_a_picture_comes_as_pixels_too(tmp_path: Path) -> None:
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="30" height="20"><text y="9">Δ</text></svg>'
    content = as_pixels(svg)
    assert content.startswith(PNG) and content[16:24] == (30 * ZOOM).to_bytes(4) + (20 * ZOOM).to_bytes(4)
    assert len(content) > len(as_pixels(svg.replace("Δ", "")))


def test_published_pages_need_no_other_file(tmp_path: Path) -> None:
    """They are those of the study, without links to what stays behind; a claim goes with them."""
    write_pages(made_up.results(), tmp_path / "study")
    (tmp_path / "study" / "results.json").write_text(json.dumps(dataclasses.asdict(made_up.results())))
    (tmp_path / "study" / "claim.json").write_text("{}")
    path = Path(publish(tmp_path / "study", tmp_path / "published"))
    found = {file.name: file.read_text("utf-8") for file in path.parent.iterdir()}
    assert found.keys() == {"report.html", "report.md", "results.csv", "claim.json"}
    for name in ("report.md", "results.csv", "claim.json"):
        assert found[name] == (tmp_path / "study" / name).read_text("utf-8")
    links = [attributes["href"] or "" for tag, attributes in Page(found["report.html"]).tags if "href" in attributes]
    assert all(link.startswith(("#", "data:", "https:")) for link in links)
    assert "results.json" not in found["report.md"] and "export/" in (tmp_path / "study" / "report.html").read_text()


def test_units_decide_how_values_are_written() -> None:
    arms = []
    for arm in made_up.results(names=("a", "b"), seeds=3).arms:
        versus = arm.versus_baseline and dataclasses.replace(arm.versus_baseline, mean=-2.5e12, interval=(-4e12, -1e12))
        arms.append(dataclasses.replace(arm, mean=1.234e15, interval=(1.2e15, 1.3e15), versus_baseline=versus))
    source = to_html(StudyResults(question="?", baseline="a", smallest_difference=1e12, unit="FLOPs", arms=tuple(arms)))
    assert ">−2.5 T<" in source and "−4 T to −1 T" in source and "1.23 P" in source


def test_where_more_is_better_the_sides_are_swapped(fresh: dict[str, Any], source: str) -> None:
    assert "← better" in source and "worse →" in source
    fresh["lower_is_better"] = False
    changed = html_of(fresh)
    assert "← worse" in changed and "better →" in changed and "above 0 is better" in changed


def test_a_study_half_run_says_so_on_top(fresh: dict[str, Any]) -> None:
    fresh["arms"][0]["runs"][7]["status"] = "interrupted"
    arm = fresh["arms"][4]
    empty = {
        "name": arm["name"],
        "changes": arm["changes"],
        "runs": [run | {"status": "missing"} for run in arm["runs"]],
    }
    fresh["arms"][4] = empty
    fresh["verdict"] = None
    source = visible(html_of(fresh))
    assert source.index("31 of 40 runs are done (1 interrupted, 8 missing)") < source.index("<table")
    assert "No verdict yet." in source
    assert "not run yet" in Page(source).rows[5]
    assert "> This study is not finished" in to_markdown(complete(fresh))


def test_a_study_of_which_nothing_ran_has_a_page(fresh: dict[str, Any]) -> None:
    fresh |= {"arms": [{"name": arm["name"], "runs": []} for arm in fresh["arms"]], "contrasts": [], "secondary": []}
    page = Page(html_of(fresh))
    assert "This study is not finished: no run has begun" in page.text and page.figures() == set()
    assert len(page.rows) == 6
    fresh["arms"] = [arm | {"tuned": {"trials": []}} for arm in fresh["arms"]]
    assert "no run of the verdict has begun, the tuning comes first" in html_of(fresh)


def test_an_unequal_copy_of_the_baseline_is_a_warning(fresh: dict[str, Any], source: str) -> None:
    assert "3 repeated runs were bit-equal" in source
    fresh["aa"] = {"equal": True, "pairs": 1}
    assert "1 repeated run was bit-equal" in html_of(fresh) and "1 of 1 repeated run bit-equal" in html_of(fresh)
    fresh["aa"] = {"equal": False, "pairs": 3}
    assert "not bit-equal (3 repeated)" in html_of(fresh)
    fresh["aa"] = None
    assert "no run was repeated" in html_of(fresh)


def test_twenty_arms_have_names_that_do_not_touch() -> None:
    names = tuple(f"arm number {i}" for i in range(20))
    source = html_of(made_up.study(names=names, seeds=2))
    for picture in re.findall(r'<figure id="validation-curves">.*?</figure>', source, re.DOTALL):
        for drawn in re.split(r'(?=<svg class="narrow")', picture):
            places = sorted(float(y) for y in re.findall(r'y="([\d.]+)" text-anchor="start" class="name"', drawn))
            assert len(places) == 20
            assert min(b - a for a, b in zip(places, places[1:], strict=False)) >= 13.9
    assert len(set(re.findall(r'class="arm (?:base|c\d)"', source))) == 7


def test_a_folder_without_results_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no results.json in .*: give the folder"):
        write_report(str(tmp_path))
    (tmp_path / "results.json").write_text('{"arms": 3}')
    with pytest.raises(ConfigError, match="results.json holds no StudyResults: it has no field"):
        write_report(str(tmp_path))
