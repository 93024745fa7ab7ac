"""Progress of a run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

REFRESH_SECONDS = 0.4
PLAIN_LINE_SECONDS = 10.0


class Display:
    """Shows the progress of a run of `steps` steps. It draws so rarely that the loop loses no time.

    `flops_per_token` counts the forward and the backward pass. `peak_flops` is the total of all devices per second, or
    None if it is not known.
    """

    def __init__(
        self,
        console: Console,
        steps: int,
        tokens_per_step: int,
        flops_per_token: int,
        peak_flops: float | None,
    ) -> None:
        self.console = console
        self.steps = steps
        self.tokens_per_step = tokens_per_step
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._drawn = time.monotonic()
        self._window: tuple[float, int] | None = None
        self._rate: float | None = None

    def start(self, step: int) -> None:
        """Begins to show a run that has done `step` updates."""
        if self.console.is_terminal and not self.console.is_jupyter:
            columns = (
                TextColumn("step {task.completed:,.0f}/{task.total:,.0f}"),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
            )
            self._bar = Progress(*columns, console=self.console, auto_refresh=False, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=self.steps, completed=step, text="compiling the first step …")
            self._bar.refresh()
        else:
            self.console.print("compiling the first step …", highlight=False)
        self.pause()

    def update(self, step: int, loss: float) -> None:
        """Reports the loss of update `step`. Most calls only look at the clock."""
        now = time.monotonic()
        if self._window is None:
            self._window = (now, step)
        if (
            now - self._drawn < (REFRESH_SECONDS if self._bar is not None else PLAIN_LINE_SECONDS)
            and step != self.steps
        ):
            return
        since, first = self._window
        if step > first and now > since:
            rate = (step - first) / (now - since)
            self._rate = rate if self._rate is None else 0.7 * self._rate + 0.3 * rate
            self._window = (now, step)
        self._drawn = now
        text = self.describe(step, loss)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
            self._bar.refresh()
        else:
            self.print(f"step {step:,}/{self.steps:,}  {text}")

    def describe(self, step: int, loss: float) -> str:
        """The loss and, once they are known, tokens per second, model FLOPs utilization (MFU) and the time left."""
        parts = [f"loss {loss:.4f}"]
        if self._rate is not None:
            tokens_per_second = self._rate * self.tokens_per_step
            parts.append(f"{tokens_per_second:,.0f} tokens/s")
            if self._peak_flops is not None:
                parts.append(f"MFU {tokens_per_second * self._flops_per_token / self._peak_flops:.1%}")
            parts.append(f"{datetime.timedelta(seconds=round((self.steps - step) / self._rate))} left")
        return "  ".join(parts)

    def evaluated(self, step: int, result: Mapping[str, float | int]) -> None:
        """Reports an evaluation after `step` updates."""
        bits = f"  {result['bits_per_byte']:.4f} bits/byte" if "bits_per_byte" in result else ""
        error = f" ± {result['loss_standard_error']:.4f}" if math.isfinite(result["loss_standard_error"]) else ""
        accuracy = f"  accuracy {result['accuracy']:.1%}"
        self.print(f"step {step:,}/{self.steps:,}  validation loss {result['loss']:.4f}{error}{bits}{accuracy}")

    def pause(self) -> None:
        """Excludes the time until the next update, which goes to an evaluation, a checkpoint or a compilation, from the
        rate.
        """
        self._window = None

    def print(self, text: str) -> None:
        """Prints above the bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def stop(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
