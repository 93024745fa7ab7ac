"""Looking inside: what a captured name costs beside the plain forward pass, how long a page takes to make and how large
it is, and how fast it answers in headless Chromium.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.browser import CHROMIUM, probe
from experiments.benchmarks.timing import alternate
from gpt_jax.analysis.walkthrough import walk_through
from gpt_jax.config import Attention, BlockConfig, GatedMlp, ModelConfig, Rope
from gpt_jax.data.tokenizer import ByteTokenizer, as_hugging_face
from gpt_jax.interop.hf import load_pretrained
from gpt_jax.model.gpt import GPT
from gpt_jax.pages.walkthrough import walkthrough_page

CAPTURED, TOKENS, CALLS = "blocks/14/mlp/hidden", 256, 2
PROMPT = "In a hole in the ground there lived a hobbit. Not a nasty"
CHANGES = 20  # of a slider, and steps of the loop
# Times until the page is there and laid out, and of single changes with the layout that follows. Painting comes on top.
SCRIPT = """
const laid = () => document.body.getBoundingClientRect().height;
const control = (id) => document.getElementById(id);
laid();
const seen = { first_view_ms: performance.now(), slider_ms: [], step_ms: [] };
const timed = (list, change) => {
  const began = performance.now(); change(); laid(); list.push(performance.now() - began); };
const slider = control("temperature"), most = Number(slider.max);
for (let i = 1; i <= %d; i++) timed(seen.slider_ms, () => {
  slider.value = most * i / %d; slider.dispatchEvent(new Event("input", { bubbles: true })); });
while (!control("forward").disabled) timed(seen.step_ms, () => control("forward").click());
"""


def run(rounds: int, model: str | None = None) -> dict[str, Any]:
    """The three measurements; `model` is a published model of SmolLM2-135M's size (None: random weights of that size).

    `ratio` divides the best times; `processor_seconds` sum over the cores.
    """
    loaded, params, tokenizer = _model() if model is None else load_pretrained(model)
    read_by = ByteTokenizer() if tokenizer is None else as_hugging_face(tokenizer)
    tokens = jax.random.randint(jax.random.key(0), (1, TOKENS), 0, read_by.vocab_size)
    plain = jax.jit(loaded.apply)
    tapped = jax.jit(lambda params, tokens: loaded.apply(params, tokens, capture=CAPTURED))
    arms = {"plain": lambda: plain(params, tokens), "captured": lambda: tapped(params, tokens)}
    times = alternate(arms, rounds, CALLS)
    return {
        "capture": {**times, "ratio": times["captured"]["best_seconds"] / times["plain"]["best_seconds"]},
        "page": _page(loaded, params, read_by)[0],
        "browser": _browser(),
    }


def _model() -> tuple[GPT, Any, None]:
    """A model of SmolLM2-135M's sizes."""
    attention = Attention(9, kv_heads=3, position=Rope(theta=1e5))
    model = GPT(ModelConfig(49_152, 2048, 576, (BlockConfig(attention, GatedMlp(1536)),) * 30))
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)), None


def _page(model: GPT, params: Any, tokenizer: Any) -> tuple[dict[str, float], str]:
    """How long the page of a prompt takes, of a process that has compiled nothing of it, and its size."""
    began, used = time.perf_counter(), time.process_time()
    walked = walk_through(model, params, tokenizer, tokenizer.encode(PROMPT), name="model", new_tokens=16)
    text = walkthrough_page("A walk through a model", PROMPT, [walked], "experiments.benchmark", False)
    seconds, processor = time.perf_counter() - began, time.process_time() - used
    return {"seconds": seconds, "processor_seconds": processor, "megabytes": len(text.encode()) / 1e6}, text


def _browser() -> dict[str, Any]:
    """Milliseconds of the page of a model of 6 layers and V = 8,192 with 64 tokens: the median and the longest of each
    kind of change. Empty without Chromium.
    """
    if CHROMIUM is None:
        return {}
    block = BlockConfig(Attention(6, position=Rope()), GatedMlp(512))
    model, tokenizer = GPT(ModelConfig(8192, 128, 192, (block,) * 6)), ByteTokenizer()
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    walked = walk_through(model, params, tokenizer, tokenizer.encode((PROMPT * 2)[:44]), name="model", new_tokens=20)
    text = walkthrough_page("A walk through a model", PROMPT, [walked], "experiments.benchmark", False)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.html")
        page.write_text(text, "utf-8")
        found = probe(page, SCRIPT % (CHANGES, CHANGES))
    changes = {
        name: {"median": statistics.median(found[name]), "longest": max(found[name])}
        for name in ("slider_ms", "step_ms")
    }
    return {"first_view_ms": found["first_view_ms"], **changes, "tokens": len(walked.tokens), "steps": walked.new}
