"""A chart of a page as a file of its own: SVG whose styles are attributes, and PNG."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import resvg_py

FONT = "DejaVu Sans"
FONT_FILES = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf")  # matplotlib ships them, so text needs no font of the machine
ZOOM = 2  # pixels of a PNG for each CSS pixel
SVG = "http://www.w3.org/2000/svg"

Style = Mapping[str, str]


def standalone(chart: str, title: str, note: str) -> str:
    """The `<svg>` element of a page as a file, in the light colours, on white.

    Args:
      chart: the element, as `charts` and `forest` draw it.
      title: the title of the picture.
      note: how to read it.
    """
    root = ElementTree.fromstring(chart)
    rules, colours = _rules(), _colours()
    _apply(root, (), rules, colours)
    root.attrib = {"xmlns": SVG, **root.attrib, "role": "img", "font-family": f"{FONT}, sans-serif"}
    for name, content in (("desc", note), ("title", title)):
        element = ElementTree.Element(name)
        element.text = content
        root.insert(0, element)
    paper = ElementTree.Element("rect", {"width": "100%", "height": "100%", "fill": colours["--paper"]})
    root.insert(2, paper)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def png(svg: str) -> bytes:
    """A file of `standalone` as PNG, `ZOOM` times as large. Characters that DejaVu lacks need a font of the machine."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    is_wide = any(unicodedata.east_asian_width(c) in "WF" for c in svg)
    return resvg_py.svg_to_bytes(
        svg_string=svg,
        zoom=ZOOM,
        skip_system_fonts=not is_wide,
        font_files=[str(folder / name) for name in FONT_FILES],
        font_family=FONT,
        sans_serif_family=FONT,
    )


def _read(name: str) -> str:
    source = files("gpt_jax.pages").joinpath(name).read_text("utf-8")
    return re.sub(r"/\*.*?\*/", "", source, flags=re.DOTALL)


def _declarations(block: str) -> dict[str, str]:
    pairs = (line.split(":", 1) for line in block.split(";") if line.strip())
    return {name.strip(): value.strip() for name, value in pairs}


def _colours() -> dict[str, str]:
    """The page's colours in light."""
    found = re.search(r":root \{(.*?)\}", _read("page.css"), re.DOTALL)
    assert found is not None
    return _declarations(found.group(1))


def _rules() -> list[tuple[list[str], dict[str, str]]]:
    """The rules of chart.css in their order: the parts of each selector, and its declarations."""
    return [
        (selector.split(), _declarations(block))
        for selectors, block in re.findall(r"([^{}]+)\{([^{}]*)\}", _read("chart.css"))
        for selector in selectors.split(",")
    ]


def _matches(part: str, element: ElementTree.Element) -> bool:
    """Whether an element has the tag and the classes of a part of a selector."""
    tag, *classes = part.split(".")
    return tag in ("", element.tag) and set(classes) <= set(element.get("class", "").split())


def _apply(
    element: ElementTree.Element,
    ancestors: Sequence[ElementTree.Element],
    rules: Sequence[tuple[list[str], dict[str, str]]],
    inherited: Style,
) -> None:
    """Writes the styles of an element and of those below it into their attributes, and drops what only pages need."""
    found: dict[str, str] = {}
    for (*above, last), block in rules:
        if _matches(last, element) and all(any(_matches(part, other) for other in ancestors) for part in above):
            found |= block
    known = {**inherited, **{name: _value(v, inherited) for name, v in found.items() if name.startswith("--")}}
    for child in element:
        _apply(child, (*ancestors, element), rules, known)
    styles = {name: _value(v, known) for name, v in found.items() if not name.startswith("--") and v != "inherit"}
    kept = {name: v for name, v in element.attrib.items() if name not in ("class", "role") and "-label" not in name}
    element.attrib = {k: v for k, v in (kept | styles).items() if not k.startswith("data-")}


def _value(text: str, known: Style) -> str:
    """A value with its variables replaced and without `px`, which attributes don't need."""
    named = re.fullmatch(r"var\((--\w+)\)", text)
    return known[named.group(1)] if named else re.sub(r"(?<=\d)px\b", "", text)
