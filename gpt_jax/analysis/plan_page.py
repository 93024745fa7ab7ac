"""The page of plans: what fits, how fast it is, with pictures of memory and time."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from gpt_jax.analysis.forecast import Forecast
from gpt_jax.analysis.plan_text import GIB, UNITS, figures, gigabytes, headline, milliseconds, tables, title
from gpt_jax.pages.bars import Bar, draw_bars
from gpt_jax.pages.numbers import Number
from gpt_jax.pages.render import render
from gpt_jax.pages.tables import plain_table

WIDE, NARROW = 620, 358


def page(forecasts: Sequence[Forecast], command: str) -> str:
    """A self-contained page: for each forecast its facts, two pictures and its tables; and the command that made it."""
    heading = "Plan: " + ", ".join(dict.fromkeys(f.topology for f in forecasts))
    body = [f'<p class="eyebrow">An estimate; nothing was measured</p><h1>{escape(heading)}</h1>']
    for forecast in forecasts:
        body.append(_section(forecast))
    body.append(f"<h2>Made by</h2><pre>{escape(command)}</pre>")
    return render(heading, "\n".join(body))


def _section(f: Forecast) -> str:
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in figures(f).items())
    pictures = [_memory(f)]
    if f.seconds is not None:
        pictures.append(_time(f))
    texts = "".join(f"{plain_table(heads, rows, 1)}<p></p>" for heads, rows in tables(f))
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in f.notes)
    said = headline(f).removeprefix(f"{title(f)}: ")
    verdict = f'<p class="{"verdict" if f.fits else "mark"}">{escape(said)}</p>'
    return (
        f'<h2>{escape(title(f))}</h2>{verdict}<dl class="facts">{facts}</dl>'
        f'<p></p><div class="pictures">{"".join(pictures)}</div><p></p>{texts}{notes}'
    )


def _memory(f: Forecast) -> str:
    least = 0.005 * sum(f.memory.values())  # what is smaller is in the table
    bars = [Bar(name, size / GIB, gigabytes(size)) for name, size in f.memory.items() if size > least]
    limit = (f.usable / GIB, f"a chip has {gigabytes(f.usable)}")
    return _figure("Memory of a chip", "Each part starts where the one before ends.", bars, "GiB", limit)


def _time(f: Forecast) -> str:
    unit, factor = ("s", 1.0) if (f.seconds or 0.0) >= 0.1 else ("ms", 1e3)
    bars = [Bar(kind, factor * value, milliseconds(value)) for kind, value in f.work.items()]
    name = f"Time {UNITS[f.target]}"
    limit = (factor * f.roofline, f"least: {milliseconds(f.roofline)}")
    about = "By kind of work. The line is the time at the peak, without anything but the model's products."
    if f.target == "decode":
        about = "By kind of work. The line is the time in which the memory gives parameters and cache once."
    return _figure(name, about, bars, unit, limit)


def _figure(name: str, about: str, bars: Sequence[Bar], unit: str, limit: tuple[Number, str]) -> str:
    drawn = "".join(
        draw_bars(bars, unit, limit, width, kind, f"{name}, by kind")
        for width, kind in ((WIDE, "wide"), (NARROW, "narrow"))
    )
    return f"<figure><figcaption><h3>{escape(name)}</h3><p>{escape(about)}</p></figcaption>{drawn}</figure>"
