"""The gallery says what its studies found: no sentence without its claim, no link without its file."""

import re
from pathlib import Path

import pytest

from gpt_jax.ablation.claim import open_claim, study_from_claim

GALLERY = Path(__file__).parents[2] / "docs" / "gallery"
INDEX = (GALLERY / "README.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", INDEX, re.DOTALL | re.MULTILINE))
STUDIES = sorted(claim.parent.name for claim in GALLERY.glob("*/claim.json"))
FILES = sorted(str(path.relative_to(GALLERY)) for path in GALLERY.rglob("*") if path.is_file())
ABSOLUTE = re.compile(r"""(?:^|[\s"'=(`])/[\w.-]+/[\w.-]""", re.MULTILINE)
MOST_BYTES = 1_500_000


def test_every_study_of_the_gallery_is_in_its_index() -> None:
    assert STUDIES == sorted(SECTIONS) and STUDIES


@pytest.mark.parametrize("name", STUDIES)
def test_the_index_quotes_what_the_claim_decided(name: str) -> None:
    """The claim reads back, was not edited, and was written before its runs."""
    claim, section = open_claim(GALLERY / name / "claim.json"), SECTIONS[name]
    assert claim.outcome is not None and claim.frozen.runs_before == 0 and not claim.changes
    assert not study_from_claim(claim.study).is_smoke
    quoted = re.findall(r"^> (.*)$", section, re.MULTILINE)
    assert quoted == [claim.outcome.verdict]
    assert claim.study.question in section and f"    {claim.frozen.command}\n" in section


@pytest.mark.parametrize("name", STUDIES)
def test_the_pages_say_the_same(name: str) -> None:
    """A page that was drawn before more seeds ran would not."""
    claim = open_claim(GALLERY / name / "claim.json")
    assert claim.outcome is not None
    for page in ("report.md", "report.html"):
        text = (GALLERY / name / page).read_text("utf-8").replace("\\", "").replace("&lt;", "<")
        assert claim.outcome.verdict in text, page


def test_links_of_the_index_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", INDEX)
    missing = [link for link in links if "://" not in link and not (GALLERY / link).exists()]
    assert links and not missing


@pytest.mark.parametrize("name", FILES)
def test_files_are_small_and_name_no_place_of_one_machine(name: str) -> None:
    file = GALLERY / name
    assert file.stat().st_size < MOST_BYTES
    if file.suffix in (".html", ".md", ".json", ".csv", ".svg"):
        assert not ABSOLUTE.findall(file.read_text("utf-8"))
