"""The page that walks through models, in headless Chromium: its numbers are the tensors, its softmax the sampler's, its
loop the model's; and no prompt runs.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.browser import probe
from gpt_jax.decoding.sampling import Sampler
from gpt_jax.pages.walkthrough import walkthrough_page
from tests.analysis.walked import NEW, PROMPT, prompt, walk
from tests.browser import framed, needs_chromium

pytestmark = needs_chromium
CELLS = [(0, 0), (7, 3), (20, 20), (29, 6)]
HELPERS = """
const all = (query, root = document) => [...root.querySelectorAll(query)];
const one = (query) => document.querySelector(query);
const told = one("#told");
const set = (id, value, event = "change") => {
  const control = one(id); control.value = value; control.dispatchEvent(new Event(event, { bubbles: true }));
};
const cellsOf = (panel, label) =>
  all(`[data-panel=${panel}] .cells`).find((c) => c.getAttribute("aria-label").startsWith(label));
const hover = (cells, row, col, rows, cols) => {
  const box = cells.getBoundingClientRect();
  const x = box.left + (col + 0.5) / cols * box.width, y = box.top + (row + 0.5) / rows * box.height;
  const point = { bubbles: true, clientX: x, clientY: y };
  cells.dispatchEvent(new PointerEvent("pointermove", point));
  return { value: Number(told.dataset.value), text: told.textContent, lit: all(".lit").length, point };
};
const bars = () => all(".bars li").map((li) => [li.dataset.id, li.dataset.p, li.dataset.logit].map(Number));
"""
SCRIPT = """
const T = %(T)d, C = 8, cells = %(cells)s, steps = %(steps)d;
const seen = { prompt: one(".asked").textContent, chips: all(".token").length, maps: {}, steps: [] };
seen.bars = bars();
seen.told_at_first = told.hidden;
for (let step = 0; step < steps; step++) {
  const next = one(".bars .taken").parentNode.dataset.id;
  one("#forward").click();
  seen.steps.push({ next: Number(next), last: all(".token small").at(-1).textContent,
    bytes: Number(one(".sum[data-bytes]").dataset.bytes), text: one(".text-so-far").textContent });
}
seen.is_at_end = one("#forward").disabled;
for (const stage of ["scores", "logits", "weights"]) {
  one(`[name=stage][value=${stage}]`).click();
  for (let layer = 0; layer < 6; layer++) {
    set("#layer", layer);
    for (let head = 0; head < one("#head").options.length; head++) {
      set("#head", head);
      const map = one("[data-map]");
      seen.maps[`${layer} ${map.dataset.map} ${head}`] = cells.map(([i, j]) => hover(map, i, j, T, T).value);
    }
  }
}
set("#layer", 0);
set("#head", 3);
const map = one("[data-map]");
seen.weight = hover(map, 9, 4, T, T);
map.dispatchEvent(new MouseEvent("click", seen.weight.point));
seen.product = { ...one("[data-panel=attention] .sum").dataset };
seen.heading = one(".detail h3").textContent;
map.focus();
const cells_now = one("[data-map]");
cells_now.focus();
cells_now.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown", bubbles: true }));
cells_now.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
seen.key = told.textContent;
seen.key_value = Number(told.dataset.value);
const residual = cellsOf("mixed", "The residual stream");
seen.residual = cells.map(([i, c]) => hover(residual, i, c %% C, T, C));
for (const depth of ["numbers", "tensors", "picture"]) {
  one(`[name=depth][value=${depth}]`).click();
  seen[depth] = { tables: all("table.numbers").length, calls: all(".facts-of").map((p) => p.textContent) };
}
one("#back").click();
seen.back = { chips: all(".token").length, focus: document.activeElement.id };
set("#temperature", 0, "input");
seen.cold = bars();
set("#temperature", 0.7, "input");
set("#top-k", 4, "input");
set("#top-p", 0.9, "input");
seen.cut = bars();
one("#first").click();
seen.first = all(".token").length;
const hasName = (c) => c.getAttribute("aria-label") || c.textContent.trim() || c.closest("label");
seen.unnamed = all("button, select, input").filter((c) => !hasName(c)).length;
seen.scripts = document.scripts.length;
seen.lens = all("table.lens tbody tr").length;
"""
FITS = """
const frame = document.querySelector("iframe").contentDocument;
const seen = { depths: {}, lanes: 0, out: [] };
for (const depth of ["picture", "numbers", "tensors"]) {
  frame.querySelector(`[name=depth][value=${depth}]`).click();
  seen.depths[depth] = frame.documentElement.scrollWidth;
}
seen.lanes = frame.querySelectorAll("[data-panel=attention] .lane").length;
for (const part of frame.querySelectorAll(".cells, button, select, .bars li")) {
  const box = part.getBoundingClientRect();
  if (box.right > 390.5 && !part.closest(".scroll")) seen.out.push(part.getAttribute("aria-label") ?? part.textContent);
}
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("walk") / "page.html"
    path.write_text(walkthrough_page("A walk", PROMPT, [walk()], "python -m experiments.inspect"), "utf-8")
    return path


@pytest.fixture(scope="module")
def seen(page: Path) -> dict[str, Any]:
    T = len(walk().tokens)
    return probe(page, HELPERS + SCRIPT % {"T": T, "cells": [list(cell) for cell in CELLS], "steps": NEW})


def test_the_numbers_are_the_tensors(seen: dict[str, Any]) -> None:
    names = set()
    for key, values in seen["maps"].items():
        layer, name, head = key.split()
        names.add((int(layer), name))
        truth = walk().layers[int(layer)].values[name][int(head)]
        assert values == [float(truth[cell]) for cell in CELLS], key
    softmax = {(i, f"attention/{name}") for i in range(4) for name in ("scores", "logits", "probabilities")}
    assert names == softmax | {(4, "attention/effective"), (5, "attention/effective")}
    stream = walk().layers[0].values["attention_residual"]
    assert [cell["value"] for cell in seen["residual"]] == [float(stream[i, c % 8]) for i, c in CELLS]
    assert all(cell["lit"] == 2 for cell in seen["residual"]), "the stream before and the change light up"


def test_a_cell_tells_its_formula_and_a_click_multiplies_out(seen: dict[str, Any]) -> None:
    layer = walk().layers[0]
    weight = layer.values["attention/probabilities"][3, 9, 4]
    assert f"{float(f'{weight:.4g}'):.4g}" in seen["weight"]["text"] and "exp(logit)" in seen["weight"]["text"]
    assert seen["weight"]["lit"] == 2
    dot = layer.values["attention/queries"][3, 9] @ layer.values["attention/keys"][1, 4]
    assert float(seen["product"]["sum"]) == pytest.approx(dot, abs=1e-5)
    assert float(seen["product"]["score"]) == pytest.approx(layer.values["attention/scores"][3, 9, 4], abs=1e-5)
    assert seen["heading"] == f"9 “{walk().tokens[9].text}” looks at 4 “{walk().tokens[4].text}”"
    assert seen["key_value"] == float(layer.values["attention/probabilities"][3, 1, 1]) and "head 3" in seen["key"]


def test_the_loop_appends_what_generate_gives_and_the_cache_grows(seen: dict[str, Any]) -> None:
    new = [token.id for token in walk().tokens[-NEW:]]
    assert seen["chips"] == len(prompt()) and seen["first"] == len(prompt()) and seen["is_at_end"]
    assert [step["next"] for step in seen["steps"]] == new == [int(step["last"]) for step in seen["steps"]]
    sizes = [sum(entry.bytes[step] for entry in walk().cache) for step in range(1, NEW + 1)]
    assert [step["bytes"] for step in seen["steps"]] == sizes
    assert seen["steps"][-1]["text"] == "".join(token.text for token in walk().tokens)
    assert seen["back"]["chips"] == len(prompt()) + NEW - 1


def test_the_softmax_is_the_samplers(seen: dict[str, Any]) -> None:
    steps = walk().predictions.steps
    best = sorted(range(steps.shape[1]), key=lambda i: -steps[0, i])[:8]
    assert [bar[0] for bar in seen["bars"]] == best and [bar[2] for bar in seen["bars"]] == steps[0, best].tolist()
    logits = jnp.asarray(steps[NEW - 1 : NEW])
    cold = {bar[0]: bar[1] for bar in seen["cold"]}
    assert cold[int(logits[0].argmax())] == 1 and sum(cold.values()) == 1
    truth = np.asarray(Sampler(0.7, 10, 0.9).probabilities(logits))[0]
    np.testing.assert_allclose([bar[1] for bar in seen["cut"]], [truth[int(bar[0])] for bar in seen["cut"]], atol=1e-6)
    assert 0 < (truth > 0).sum() < 10


def test_a_prompt_is_shown_and_not_run_and_the_console_stays_empty(page: Path, seen: dict[str, Any]) -> None:
    assert seen["prompt"] == PROMPT and "alert(1)" in PROMPT
    source = page.read_text("utf-8")
    assert "<script>alert" not in source and seen["scripts"] == 3  # the data, the page's own, and this test's
    assert "CONSOLE" not in seen["log"], seen["log"]
    assert seen["unnamed"] == 0 and seen["lens"] == 7 and seen["told_at_first"]
    assert seen["picture"]["calls"] == [] and seen["numbers"]["tables"] > seen["picture"]["tables"]
    assert any('read(model, params, tokens, "blocks/0/attention/probabilities")' in c for c in seen["tensors"]["calls"])
    arrays = 4 * sum(value.size for layer in walk().layers for value in layer.values.values())
    assert len(source) < 1.5 * arrays + 200_000, "base64 of the tensors, and little else"


def test_two_arms_fit_a_phone(page: Path) -> None:
    both = page.with_name("both.html")
    lines = "\n".join(["many", *["lines"] * 63])
    arms = [walk(), dataclasses.replace(walk(), name="the other arm</script> with a long name " * 3)]
    both.write_text(walkthrough_page("Two arms", lines, arms, "python " + "x" * 300), "utf-8")
    seen = probe(framed(both, 390), FITS, 600)
    assert seen["lanes"] == 2 and seen["out"] == []
    assert len(seen["depths"]) == 3 and max(seen["depths"].values()) <= 390, "the page must not scroll sideways"
