"""What a person reads of a plan: the page and the terminal."""

import dataclasses
import io
import re

import pytest
from rich.console import Console

from gpt_jax.analysis.forecast import Buffer, Communication, Forecast
from gpt_jax.analysis.plan_page import NARROW, page
from gpt_jax.analysis.plan_text import show

GIB = 2**30
FITS = Forecast(
    target="train",
    topology="v5e:4x4",
    chip="v5e",
    chips=16,
    hosts=4,
    mesh={"data": 2, "fsdp": 8},
    fits=True,
    memory={"parameters": GIB, "activations": 6 * GIB, "batch": 1000},
    usable=int(15.75 * GIB),
    buffers=[
        Buffer(2 * GIB, "2 × bf16[12,4,1024,3072]", "mlp/mul", "gpt_jax/model/mlp.py:62", "--config.model.remat=dots")
    ],
    seconds=0.5,
    cycles=7e8,
    work={"mlp": 0.3, "collectives": 0.2},
    kernels={"splash": 0.05},
    flops=4e14,
    roofline=0.13,
    tokens=1000,
    total_tokens=3_600_000,
    price=1.2,
    communication=[Communication("all-reduce", 7.0 * GIB, 7.0 * GIB, 27)],
    compile_seconds=60.0,
    notes=["Times are estimates."],
)
LARGE = dataclasses.replace(
    FITS, fits=False, memory={"parameters": 20 * GIB}, seconds=None, cycles=None, work={}, kernels={}, communication=[]
)


def test_a_page_needs_no_network_and_fits_a_phone():
    text = page([FITS, LARGE], "python -m experiments.plan --topology=v5e:4x4")
    assert not re.search(r"https?://", text)
    narrow = re.findall(r'<svg class="narrow" viewBox="0 0 (\d+)', text)
    assert len(narrow) == 3 and {int(width) for width in narrow} == {NARROW}  # the second has no time
    bars = [(float(x), float(w)) for x, w in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', text)]
    assert bars and all(x + width <= 700 for x, width in bars)


@pytest.mark.parametrize(
    "said",
    [
        "7.00 GiB of 15.75 GiB a chip; 500.0 ms a step, 26% of the peak, by estimate",
        "16 chips of v5e on 4 hosts",
        "data=2, fsdp=8",
        "2,000 a second",
        "30 min",
        "gpt_jax/model/mlp.py:62",
        "--config.model.remat=dots",
        "7.00 GiB",
    ],
)
def test_page_and_terminal_say_the_same(said):
    out = io.StringIO()
    show(Console(file=out, width=200), [FITS])
    assert said in out.getvalue() and said in page([FITS], "")


def test_what_does_not_fit_says_so_first():
    out = io.StringIO()
    show(Console(file=out, width=200), [LARGE])
    assert "v5e:4x4: does not fit: 20.00 GiB of 15.75 GiB a chip" in out.getvalue()
    assert "time a step" not in out.getvalue() and "cost" not in out.getvalue()
