"""A resumable training run: clock, log, loss curve and checkpoint.

A run has a time limit, and the learning rate depends on the time spent, so a slow machine only makes fewer steps.
"""

import csv
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from tqdm import tqdm

SAVE_EVERY_S = 60.0
LOG_EVERY_STEPS = 20


class Run:
    """Counts the training time across restarts and saves the state of all `parts`.

    `parts` are modules and optimizers; `clock` returns seconds. `folder/run.pt` holds the states, `log.csv` the losses.
    """

    def __init__(
        self, folder: Path, minutes: float, parts: dict[str, Any], clock: Callable[[], float] = time.process_time
    ) -> None:
        self.folder, self.limit_s, self.parts, self.clock = folder, minutes * 60, parts, clock
        self.elapsed_s, self.step = 0.0, 0
        self._sums: dict[str, float] = {}
        self._stop_requested = False
        folder.mkdir(parents=True, exist_ok=True)
        if self._checkpoint.exists():
            self._load()

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "run.pt"

    @property
    def progress(self) -> float:
        """The share of the time limit that is spent, 0 to 1."""
        return min(1.0, self.elapsed_s / self.limit_s)

    @property
    def finished(self) -> bool:
        return self.elapsed_s >= self.limit_s

    def rate(self, peak: float, *, warm_steps: int = 100) -> float:
        """Returns the learning rate: a short warm-up, then half a cosine down to 2 % of `peak`."""
        cosine = 0.02 + 0.98 * (1 + math.cos(math.pi * self.progress)) / 2
        return peak * cosine * min(1.0, (self.step + 1) / warm_steps)

    def steps(self) -> Iterator[int]:
        """Yields step numbers until the time is spent. Saves every minute and at the end.

        On SIGTERM or SIGINT it saves after the current step and raises SystemExit.
        """
        signals = (signal.SIGTERM, signal.SIGINT)
        previous_handlers = [signal.signal(number, self._request_stop) for number in signals]
        try:
            yield from self._timed_steps()
        finally:
            self.save()
            for number, handler in zip(signals, previous_handlers, strict=True):
                signal.signal(number, handler)
        if not self.finished:
            raise SystemExit(f"stopped at {self.progress:.0%}; the same command resumes it")

    def _timed_steps(self) -> Iterator[int]:
        last_s = saved_s = self.clock()
        with tqdm(total=round(self.limit_s), unit="s", initial=round(self.elapsed_s), mininterval=20) as bar:
            while not (self.finished or self._stop_requested):
                yield self.step
                now_s = self.clock()
                self.elapsed_s += now_s - last_s
                bar.update(round(self.elapsed_s) - bar.n)
                self.step, last_s = self.step + 1, now_s
                if now_s - saved_s > SAVE_EVERY_S:
                    self.save()
                    saved_s = now_s

    def _request_stop(self, *_: object) -> None:
        self._stop_requested = True

    def log(self, **values: float) -> None:
        """Adds a row of means to `log.csv` every `LOG_EVERY_STEPS` steps."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
        if (self.step + 1) % LOG_EVERY_STEPS:
            return
        row = {name: round(total / LOG_EVERY_STEPS, 5) for name, total in self._sums.items()}
        self._sums = {}
        path = self.folder / "log.csv"
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow(["step", "seconds", *row])
            writer.writerow([self.step + 1, round(self.elapsed_s), *row.values()])

    def save(self) -> None:
        state = {name: part.state_dict() for name, part in self.parts.items()}
        partial = self._checkpoint.with_suffix(".partial")
        torch.save({"elapsed_s": self.elapsed_s, "step": self.step, "parts": state}, partial)
        partial.replace(self._checkpoint)
        draw_curve(self.folder / "log.csv", self.folder / "loss.png")

    def _load(self) -> None:
        state = torch.load(self._checkpoint, weights_only=True, map_location="cpu")
        self.elapsed_s, self.step = state["elapsed_s"], state["step"]
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])


def draw_curve(log: Path, out: Path, size: tuple[int, int] = (640, 360)) -> None:
    """Plots the first loss of a log file over its steps, on a logarithmic axis."""
    if not log.exists():
        return
    with log.open() as file:
        rows = list(csv.reader(file))
    name, points = rows[0][2], [(int(row[0]), float(row[2])) for row in rows[1:] if float(row[2]) > 0]
    if len(points) < 2:
        return
    heights = [math.log10(value) for _, value in points]
    low, high, last_step = min(heights), max(heights), points[-1][0]
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    xs = [40 + (size[0] - 60) * step / last_step for step, _ in points]
    ys = [20 + (size[1] - 50) * (high - value) / max(high - low, 1e-9) for value in heights]
    pen.line(list(zip(xs, ys, strict=True)), fill=(30, 70, 200), width=2)
    pen.text((40, 4), f"{name}: {10**high:.4g} to {10**low:.4g}, log axis, {last_step} steps", fill="black")
    image.save(out)


class Average:
    """An exponential moving average of a module's weights, used for sampling and export."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.module, self.decay, self.updates = module, decay, 0
        self.shadow = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in self.module.state_dict().items():
            if value.is_floating_point():
                self.shadow[name].lerp_(value, 1 - decay)
            else:
                self.shadow[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self.shadow, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for name, value in state["shadow"].items():
            self.shadow[name].copy_(value)
