"""axe-core (Deque) finds nothing serious in the pages that people read, in light and in dark."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest

from experiments.benchmarks.browser import probe
from gpt_jax.ablation.report import write_report
from gpt_jax.pages.walkthrough import walkthrough_page
from tests.ablation import made_up
from tests.ablation.rasters import no_pixels
from tests.analysis.walked import PROMPT, walk
from tests.browser import needs_chromium

__all__ = ["no_pixels"]
pytestmark = needs_chromium
CHECK = """
%s
const found = await axe.run(document, { resultTypes: ["violations"] });
const seen = { rules: found.passes.length, dark: matchMedia("(prefers-color-scheme: dark)").matches };
seen.faults = found.violations.map((v) => [v.impact, v.id, v.nodes.length, v.nodes[0].html.slice(0, 200)]);
"""


def faults(page: Path, dark: bool = False) -> list[list[str]]:
    """Impact, rule, count and an example of each fault that axe calls serious or critical."""
    package = importlib.util.find_spec("axe_core_python")
    assert package is not None and package.submodule_search_locations is not None
    source = Path(package.submodule_search_locations[0], "axe.min.js").read_text("utf-8")
    seen = probe(page, CHECK % source, dark=dark)
    assert seen["rules"] > 3 and seen["dark"] == dark
    return [fault for fault in seen["faults"] if fault[0] in ("serious", "critical")]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_walk_through_two_models(dark: bool, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    arms = [walk(), dataclasses.replace(walk(), name="other")]
    path.write_text(walkthrough_page("A walk", PROMPT, arms, "python -m experiments.inspect"), "utf-8")
    assert faults(path, dark) == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_report(dark: bool, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(made_up.study()))
    path = Path(write_report(str(tmp_path)))
    assert faults(path, dark) == []


def test_a_fault_is_found(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("<!doctype html><html><body><button></button><img src=''><p>script-src ' </body></html>")
    assert {"button-name", "image-alt"} <= {fault[1] for fault in faults(path)}
