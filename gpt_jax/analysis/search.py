"""Searches for the fastest way to run a configuration on a slice: compiles the most promising ways, and ranks them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

import jax

from gpt_jax import config
from gpt_jax.analysis.candidates import Candidate, candidates
from gpt_jax.analysis.chips import chip_of
from gpt_jax.analysis.forecast import Forecast
from gpt_jax.analysis.plan import plan_train_step, resolved_without_text
from gpt_jax.analysis.topology import tpu_mesh
from gpt_jax.config.errors import UserError

MEMORY = 8 * 2**30  # bytes of this machine that one compilation may take


@dataclass(frozen=True)
class Try:
    """A way that was compiled: the flags that make it, and its forecast, or why there is none."""

    flags: tuple[str, ...]
    forecast: Forecast | None
    failure: str


def search(
    c: config.Config, topology: str, price: float | None, tries: int, told: Callable[[str], None]
) -> tuple[list[Try], int]:
    """The ways that were compiled, the fastest that fits first, and the number of ways that were not.

    `tries` bounds the number of compilations, which run in worker processes, as many as cores and memory allow. `told`
    is called with a line for each.

    Raises:
      UserError: as `plan_train_step`; or no way can fit, by its parameters, moments and activations alone.
    """
    resolved, length = resolved_without_text(c)
    mesh = tpu_mesh(topology)
    chip = chip_of(mesh.devices.flat[0])
    found = candidates(resolved, length, mesh.size, chip)
    if not found:
        raise UserError(
            f"no way to run this configuration fits {topology}: parameters, moments and activations alone need more"
            " memory than its chips have; take more chips or a smaller train.batch_size"
        )
    chosen = found[:tries]
    done: list[Try] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers(len(chosen)), mp_context=context, initializer=_on_cpu) as pool:
        running = {pool.submit(_try, way, topology, price): way for way in chosen}
        for future in as_completed(running):
            done.append(future.result())
            told(f"{len(done)} of {len(chosen)}: {said(done[-1])}")
    return ranked(done), len(found) - len(chosen)


def workers(ways: int) -> int:
    """How many compilations run at once: one for each core, as far as the free memory allows."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(ways, os.cpu_count() or 1, free // MEMORY))


def ranked(tries: Sequence[Try]) -> list[Try]:
    """The fastest that fits first; then those that don't fit, and those that failed."""

    def key(way: Try) -> tuple[int, float]:
        if way.forecast is None:
            return 2, 0.0
        if not way.forecast.fits or way.forecast.seconds is None:
            return 1, float(sum(way.forecast.memory.values()))
        return 0, way.forecast.seconds

    return sorted(tries, key=key)


def said(way: Try) -> str:
    """A line about a way."""
    flags = " ".join(way.flags)
    if way.forecast is None:
        return f"failed ({way.failure}): {flags}"
    if not way.forecast.fits or way.forecast.seconds is None:
        return f"does not fit: {flags}"
    return f"{1e3 * way.forecast.seconds:.0f} ms a step: {flags}"


def _on_cpu() -> None:
    jax.config.update("jax_platforms", "cpu")


def _try(way: Candidate, topology: str, price: float | None) -> Try:
    try:
        return Try(way.flags, plan_train_step(way.config, topology, price, is_explained=False), "")
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        return Try(way.flags, None, " ".join(str(error).split())[:200])
