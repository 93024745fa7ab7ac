"""The pages of docs/: every link leads somewhere, on GitHub and on the built site, which needs no network to read."""

import ast
import html
import importlib.util
import itertools
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)|<(?:img|a)\s[^>]*?(?:src|href)=\"([^\"]+)\"")


def prose(path: Path) -> str:
    """The page without its code."""
    text = re.sub(r"^( *)```.*?^\1```", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "`code`", text)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    text = re.sub(r"^( *)```.*?^\1```", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_of_the_repository(page: Path) -> None:
    for target in (first or second for first, second in LINK.findall(prose(page))):
        url = urlsplit(target)
        if url.scheme:
            assert url.scheme == "https", target
            continue
        there = (page.parent / unquote(url.path)).resolve() if url.path else page
        assert there.exists() and there.is_relative_to(ROOT), f"{target}: there is no such file"
        assert page.name == "README.md" and page.parent == ROOT or there.is_relative_to(ROOT / "docs"), (
            f"{target}: the site has no files outside docs/"
        )
        if url.fragment and there.suffix == ".md":
            assert url.fragment in anchors(there), f"{target}: there is no such heading"


def test_the_navigation_has_every_page_once() -> None:
    named = re.findall(r"^ +- (?:.*: )?([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    reports = {path for path in (ROOT / "docs" / "gallery").glob("*/**/report.md")}  # linked from the gallery's page
    assert sorted(named) == sorted(
        path.relative_to(ROOT / "docs").as_posix() for path in PAGES if path.name != "report.md" and path.parent != ROOT
    )
    assert reports


def test_each_quoted_error_begins_a_message_of_the_code() -> None:
    said = set()
    for path in itertools.chain(ROOT.glob("gpt_jax/**/*.py"), ROOT.glob("experiments/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                said.add("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                said.add(node.value)
    quoted = re.findall(r"^\| `(.*?)` \|", (ROOT / "docs" / "errors.md").read_text("utf-8"), re.MULTILINE)
    assert len(quoted) > 50
    for words in quoted:
        begins = re.compile(".*".join(map(re.escape, words.split("…"))), re.DOTALL)
        assert any(begins.match(message) for message in said), f"no message begins with: {words}"


class Loads(HTMLParser):
    """What a page links to, and what a browser loads to show it."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if (source := found.get("src")) is not None:
            self.loads.append(source)
        if (target := found.get("href")) is not None:
            fetched = tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload")
            (self.loads if fetched else self.links).append(target)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: any broken link ends the build."""
    for name in ("zensical", "mkdocstrings", "mkdocstrings_handlers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install -c constraints.txt -e '.[docs]'")
    project = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "mkdocs.yml", project)  # links would be followed, and the site written to the checkout
    for name in ("docs", "gpt_jax"):
        shutil.copytree(ROOT / name, project / name)
    line = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(line, cwd=project, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return project / "site"


def test_the_site_has_no_broken_link_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = [page for page in site.rglob("*.html") if not (ROOT / "docs" / page.relative_to(site)).exists()]
    assert len(pages) >= len(PAGES)
    for page in pages:
        found = Loads()
        found.feed(page.read_text("utf-8"))
        outside = [url for url in found.loads if urlsplit(url).scheme not in ("", "data") or url.startswith("//")]
        assert not outside, f"{page.relative_to(site)} loads {outside}"
        for target in [*found.loads, *found.links]:
            url = urlsplit(target)
            if url.scheme or target.startswith(("/", "#")) or page.name == "404.html":
                continue
            there = page.parent / unquote(url.path)
            assert (there / "index.html" if there.is_dir() else there).is_file(), f"{page.relative_to(site)}: {target}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text("utf-8")), sheet


def test_the_pages_from_docstrings_have_shapes(site: Path) -> None:
    text = html.unescape(re.sub(r"<[^>]+>", "", (site / "api" / "models" / "index.html").read_text("utf-8")))
    assert "backbone(tokens: Int[Array, 'B T'], **options: Any)" in text
    assert "a pure function of" in text and "Raises" in text
