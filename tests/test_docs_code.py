"""Every Python block in README and docs/ runs as it stands."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

import gpt_jax
from gpt_jax import GPT
from gpt_jax.analysis.capture import tap_shapes
from gpt_jax.config import Attention, Head, Lora, Rope
from gpt_jax.data.tokenizer import ByteTokenizer
from gpt_jax.model.registry import ATTENTIONS
from tests.test_docs import PAGES, ROOT
from tests.tiny import random_params, tiny

# These have tests of their own: tests/analysis/test_look_inside_page.py, tests/experiments/test_watching_page.py.
ELSEWHERE = {"look_inside.md", "watching.md"}
HERE = {"README.md", "colab.md", "own_attention.md", "pretrained.md", "studies.md", "text_to_text.md"}


def run(name: str, **given: Any) -> dict[str, Any]:
    """What the page's blocks define, run one after the other."""
    path = ROOT / name if name == "README.md" else ROOT / "docs" / name
    place = dict(given)
    for block in re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.MULTILINE):
        exec(compile(block, name, "exec"), place)
    return place


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`load_run` gives a tiny model with an adapter, and files go to an empty folder."""
    monkeypatch.chdir(tmp_path)
    adapted = {"adapter": Lora(rank=2, targets=("attention/query",))}
    model = GPT(tiny(Attention(2, position=Rope()), vocab_size=257, block=adapted, head=Head(tied=False)))
    monkeypatch.setattr(gpt_jax, "load_run", lambda folder: (model, random_params(model), ByteTokenizer()))


@pytest.fixture
def registry() -> Iterator[None]:
    """Forgets the kinds of attention that a page defines."""
    before = dict(ATTENTIONS)
    yield
    for kind in ATTENTIONS.keys() - before.keys():
        del ATTENTIONS[kind]


def test_every_page_with_code_is_run() -> None:
    assert {page.name for page in PAGES if "```python\n" in page.read_text("utf-8")} == HERE | ELSEWHERE


def test_text_to_text_runs_and_its_table_has_the_shapes() -> None:
    place = run("text_to_text.md")
    page = (ROOT / "docs" / "text_to_text.md").read_text("utf-8")
    rows = re.findall(r"^\| .* \| `([^`]+)` \| \(.*\) \| (\(.*\)) \|$", page, re.MULTILINE)
    assert len(rows) > 12
    for name, shape in rows:
        assert str(place["shapes"][name]) == shape, name


@pytest.mark.usefixtures("registry")
def test_an_attention_of_ones_own_runs() -> None:
    place = run("own_attention.md")
    names = tap_shapes(place["model"], place["params"], jnp.zeros((1, 4), int))
    assert "blocks/1/output" in names


def test_the_study_of_the_page_is_the_one_that_ships() -> None:
    from configs.ablations import kv_heads
    from gpt_jax.config import Config
    from gpt_jax.config.conversion import from_config_dict

    base = from_config_dict(Config, kv_heads.get_config(), {})
    place, shipped = run("studies.md"), kv_heads.get_study(base, "tuned")
    assert place["get_study"](base) == shipped
    assert [suite.name for suite in place["with_answers"](shipped).secondary] == ["copy", "recall"]


@pytest.mark.usefixtures("loaded")
def test_readme_runs() -> None:
    place = run("README.md")
    assert place["out"].tokens.shape == (2, 16) and place["logits"].shape == (2, 32, 257)


@pytest.mark.usefixtures("loaded")
def test_adapters_are_saved_and_merged() -> None:
    place = run("pretrained.md")
    assert Path("adapter/adapter_config.json").is_file() and place["model"].config.blocks[0].adapter is None


@pytest.mark.usefixtures("loaded")
def test_a_page_shows_in_a_cell() -> None:
    pytest.importorskip("IPython", reason="a notebook's display")
    Path("report.html").write_text('<p class="a">one</p>')
    assert run("colab.md")["page"] == "&lt;p class=&quot;a&quot;&gt;one&lt;/p&gt;"
