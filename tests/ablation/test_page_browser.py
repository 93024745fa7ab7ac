"""A report in a real browser, headless Chromium: it sorts, tells values, fits a phone, and nothing lies on anything."""

import json
from pathlib import Path

import pytest

from gpt_jax.ablation.report import write_report
from tests.ablation import made_up
from tests.ablation.rasters import no_pixels
from tests.browser import browse, framed, needs_chromium, probe

__all__ = ["no_pixels"]  # for every test here
pytestmark = needs_chromium

SORT = """
const head = (name) => [...document.querySelectorAll("#arms th")].find((th) => th.textContent === name);
const order = () => [...document.querySelectorAll("#arms tbody tr")].map((tr) => tr.cells[0].dataset.value);
const seen = { before: order() };
for (const name of ["arm", "Δ", "verdict"]) {
  head(name).querySelector("button").click();
  seen[`${name} up`] = order();
  head(name).querySelector("button").click();
  seen[`${name} down`] = order();
  seen[`${name} state`] = head(name).getAttribute("aria-sort");
}
"""
HOVER = """
const tip = document.getElementById("tip");
const point = (element, x, y) => element.dispatchEvent(
  new PointerEvent("pointermove", { bubbles: true, clientX: x, clientY: y }));
const seen = { hidden: tip.hidden };
const cell = document.querySelectorAll("#arms tbody tr")[1].cells[4];
point(cell, 20, 20);
seen.cell = tip.textContent;
seen.shown = !tip.hidden && tip.getBoundingClientRect().width > 50;
const figure = document.getElementById("validation-curves");
figure.scrollIntoView();
const line = figure.querySelector("svg.wide polyline.line");
const place = line.points.getItem(line.points.numberOfItems - 1);
const at = new DOMPoint(place.x, place.y).matrixTransform(line.getScreenCTM());
point(figure.querySelector("svg.wide"), at.x + 1, at.y - 1);
seen.curve = tip.textContent;
seen.hot = figure.querySelectorAll("svg.wide .arm.hot").length;
seen.named = line.dataset.name;
point(document.querySelector("h1"), 5, 5);
seen.after = tip.hidden;
"""
FITS = """
const frame = document.querySelector("iframe").contentDocument;
const seen = { viewport: frame.documentElement.clientWidth, page: frame.documentElement.scrollWidth,
               drawn: 0, out: [], covered: [], deciding: 0, table: 0 };
const cells = [...frame.querySelectorAll("#arms tr")].map((tr) => [...tr.cells].slice(0, 4)).flat();
seen.deciding = Math.max(...cells.map((cell) => cell.getBoundingClientRect().right));
seen.table = frame.querySelector("#arms").parentNode.getBoundingClientRect().right;
const shows = (svg) => frame.defaultView.getComputedStyle(svg).display !== "none";
for (const svg of [...frame.querySelectorAll("figure > svg")].filter(shows)) {
  seen.drawn += 1;
  const name = svg.parentNode.id;
  const texts = [...svg.querySelectorAll("text")].filter((text) => text.textContent);
  const boxes = texts.map((text) => text.getBoundingClientRect());
  boxes.forEach((a, i) => {
    if (a.left < -0.5 || a.right > seen.viewport + 0.5) seen.out.push(`${name}: ${texts[i].textContent}`);
    boxes.slice(i + 1).forEach((b, j) => {
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 1 && high > 4) seen.covered.push(`${name}: ${texts[i].textContent} / ${texts[i + 1 + j].textContent}`);
    });
  });
}
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    study = made_up.study()
    study["arms"][3]["versus_baseline"] = None
    (folder / "results.json").write_text(json.dumps(study))
    return Path(write_report(str(folder)))


def test_the_console_stays_empty(report: Path) -> None:
    document, log = browse(report)
    assert "How many key/value heads" in document
    assert "<title>" not in document.split("</head>")[1].split("<script>")[0], "the page's script did not run"
    assert "CONSOLE" not in log, log


def test_a_click_on_a_head_sorts(report: Path) -> None:
    seen = probe(report, SORT)
    arms = ["mha", "gqa2", "mqa", "mqa, window 32", "gqa2, gated"]
    assert seen["before"] == arms
    assert seen["arm up"] == sorted(arms) and seen["arm down"] == sorted(arms)[::-1]
    assert seen["arm state"] == "descending"
    deltas = {a["name"]: a["versus_baseline"]["mean"] for a in made_up.study()["arms"] if a["versus_baseline"]}
    del deltas["mqa, window 32"]
    by_delta = sorted(deltas, key=lambda name: deltas[name])
    assert seen["Δ up"][:3] == by_delta and seen["Δ down"][:3] == by_delta[::-1]
    for direction in ("Δ up", "Δ down", "verdict up", "verdict down"):
        assert set(seen[direction][3:]) == {"mha", "mqa, window 32"}, "what was not measured comes last"


def test_hovering_shows_values(report: Path) -> None:
    seen = probe(report, HOVER)
    study = made_up.study()
    assert seen["hidden"] and seen["shown"] and seen["after"]
    assert f"seed 0: {study['arms'][1]['losses']['0']:.4f}" in seen["cell"]
    arm = next(arm for arm in study["arms"] if arm["name"] == seen["named"])
    step, value = arm["curves"]["validation"][-1][:2]
    assert seen["curve"].startswith(f"{arm['name']}: {value:.5g}"[:12]) and f"updates: {step:,}" in seen["curve"]
    assert seen["hot"] == 2  # the line and its name


CROWD = ("baseline", *(f"variant {i} of nineteen" if i % 4 == 0 else f"arm-{i}" for i in range(1, 20)))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("names", [CROWD, ("M" * 60, "W" * 60, "注意機構" * 9)], ids=["twenty arms", "broad names"])
def test_crowded_pictures_are_legible(tmp_path: Path, names: tuple[str, ...], width: int) -> None:
    (tmp_path / "results.json").write_text(json.dumps(made_up.study(names=names, seeds=3)))
    seen = probe(framed(Path(write_report(str(tmp_path))), width), FITS, max(width + 40, 600))
    assert seen["page"] <= width
    assert seen["out"] == [] and seen["covered"] == []


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_the_page_fits_and_no_words_lie_on_others(report: Path, width: int) -> None:
    seen = probe(framed(report, width), FITS, max(width + 40, 600))
    assert seen["viewport"] == width
    assert seen["page"] <= width, "the page must not scroll sideways"
    if width >= 390:
        assert seen["deciding"] <= seen["table"], "Δ with its interval, p and verdict must be seen without scrolling"
    assert seen["drawn"] == 12
    assert seen["out"] == [] and seen["covered"] == []
