"""Plans for people: the words and numbers of a forecast, and its tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from gpt_jax.analysis.forecast import Forecast
from gpt_jax.analysis.search import Try
from gpt_jax.pages.numbers import Number, compact, decimals, seconds

GIB = 2**30
UNITS = {"train": "a step", "prefill": "for the prompts", "decode": "a token of each row"}


def show(console: Console, forecasts: Sequence[Forecast]) -> None:
    """Prints each forecast: a sentence, its facts, and tables of memory, time and communication."""
    for forecast in forecasts:
        console.print(f"\n[bold]{headline(forecast)}[/bold]")
        facts = Table.grid(padding=(0, 2))
        for name, value in figures(forecast).items():
            facts.add_row(f"[dim]{name}[/dim]", value)
        console.print(facts)
        for heads, rows in tables(forecast):
            table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
            for index, head in enumerate(heads):
                table.add_column(head, overflow="fold", no_wrap=index > 0)
            for row in rows:
                table.add_row(*row)
            console.print()
            console.print(table)
        console.print()
        for note in forecast.notes:
            console.print(f"[dim]{note}[/dim]")


def show_tries(console: Console, topology: str, tries: Sequence[Try], commands: Sequence[str], left: int) -> None:
    """Prints the ways of a search, the best first, with the command line that gives each."""
    console.print(f"\n[bold]{topology}: {len(tries)} ways compiled[/bold], {left} more that bounds made less promising")
    for rank, (way, command) in enumerate(zip(tries, commands, strict=True), start=1):
        f = way.forecast
        said = f"failed: {way.failure}" if f is None else headline(f).removeprefix(f"{title(f)}: ")
        console.print(f"{rank:>3}  {said}", highlight=False, markup=False)
        console.print(f"     {command}", style="dim", highlight=False, markup=False, soft_wrap=True)


def title(f: Forecast) -> str:
    """The slice and, for generation, the program."""
    return f.topology if f.target == "train" else f"{f.topology}, {f.target}"


def headline(f: Forecast) -> str:
    """Whether it fits, and how fast it is."""
    used, usable = gigabytes(sum(f.memory.values())), gigabytes(f.usable)
    if not f.fits or f.seconds is None:
        return f"{title(f)}: does not fit: {used} of {usable} a chip"
    speed = f"{milliseconds(f.seconds)} {UNITS[f.target]}"
    share = f"{100 * (f.share or 0.0):.0f}% of {'the roofline' if f.target == 'decode' else 'the peak'}"
    return f"{title(f)}: fits, {used} of {usable} a chip; {speed}, {share}, by estimate"


def figures(f: Forecast) -> dict[str, str]:
    """Name → value of what a reader looks for first."""
    found = {
        "slice": f"{f.chips} chips of {f.chip} on {f.hosts} host{'s' if f.hosts > 1 else ''}",
        "mesh": ", ".join(f"{axis}={size}" for axis, size in f.mesh.items()),
        "memory": f"{gigabytes(sum(f.memory.values()))} of {gigabytes(f.usable)} a chip",
    }
    if f.seconds is not None and f.tokens_per_second is not None:
        found["time"] = milliseconds(f.seconds)
        found["tokens"] = f"{compact(f.tokens_per_second)} a second"
        found["model's operations"] = f"{compact(f.flops)} {UNITS[f.target]}"
    if f.hours is not None and f.total_tokens is not None:
        found["whole run"] = f"{seconds(3600 * f.hours)} for {compact(f.total_tokens)} tokens, training alone"
    if f.cost is not None and f.price is not None:
        found["cost"] = f"{decimals(f.cost, 0)}, at {f.price:g} for an hour of a chip"
    found["compiled in"] = seconds(f.compile_seconds)
    return found


def tables(f: Forecast) -> list[tuple[list[str], list[list[str]]]]:
    """Heads and rows of what the memory holds, what the time goes to and what the chips send."""
    found = [(["memory of a chip", "", ""], [[k, gigabytes(v), percent(v, f.usable)] for k, v in f.memory.items()])]
    if f.seconds is not None:
        rows = [[kind, milliseconds(value), percent(value, f.seconds)] for kind, value in f.work.items()]
        found.append(([f"time {UNITS[f.target]}", "", ""], rows))
    if f.kernels:
        rows = [[name, milliseconds(value), percent(value, f.seconds or 1.0)] for name, value in f.kernels.items()]
        found.append((["kernels, by their roofline", "", ""], rows))
    if f.communication:
        rows = [[c.kind, gigabytes(c.sent), gigabytes(c.between_hosts), f"{c.operations:,}"] for c in f.communication]
        found.append((["collectives", "a chip sends", "between hosts", "times"], rows))
    if f.buffers:
        rows = [[b.array, gigabytes(b.bytes), b.line or b.scope or "–", b.remedy or "–"] for b in f.buffers]
        found.append((["largest arrays at the peak", "", "made by", "smaller with"], rows))
    return found


def gigabytes(value: Number) -> str:
    """Bytes as GiB, or MiB if they are few."""
    return f"{value / GIB:.2f} GiB" if value >= 0.1 * GIB else f"{value / 2**20:.1f} MiB"


def milliseconds(value: Number) -> str:
    """Seconds, or milliseconds if they are few."""
    return f"{value:.2f} s" if value >= 1.0 else f"{1e3 * value:.1f} ms" if value >= 1e-3 else f"{1e3 * value:.3f} ms"


def percent(part: Number, whole: Number) -> str:
    return f"{100 * part / whole:.1f}%"
