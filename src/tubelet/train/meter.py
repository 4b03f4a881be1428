"""Averages between two lines of the log, kept on the device until they are read."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from tubelet.errors import TrainingError
from tubelet.train.folder import begun


class Meter:
    """Sums of a step's numbers, the time spent waiting for data, and the first step with a number that is not finite."""

    def __init__(self, device: torch.device) -> None:
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self.restart()

    def restart(self) -> None:
        """Begin a new average, and a new measurement of speed."""
        self.sums: dict[str, Tensor] = {}
        self.steps = self.clips = 0
        self.waited, self.began = 0.0, time.monotonic()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time of the block as waiting for data."""
        began = time.monotonic()
        yield
        self.waited += time.monotonic() - began

    def add(self, step: int, numbers: Mapping[str, Tensor], clips: int) -> None:
        """One step's numbers; nothing is fetched from the device."""
        for name, value in numbers.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
            bad = ~torch.isfinite(value) & (self.bad_step < 0)
            self.bad_step = torch.where(bad, step, self.bad_step)
        self.steps += bool(numbers)  # a step without a readable video has none
        self.clips += clips

    def check(self, folder: Path, settle: Callable[[], None]) -> None:
        """TrainingError naming the first step whose loss or gradient was not finite, and what is left of the run, which is
        known once `settle` has returned."""
        bad = int(self.bad_step)
        if bad >= 0:
            settle()
            cure = "a lower --optim.base-lr, --optim.clip-gradient 1 or --run.precision fp32"
            raise TrainingError(
                f"the loss or its gradient is not finite at step {bad}; "
                + (
                    f"the last good checkpoint is kept in {folder / 'checkpoints'}. Start another --out with {cure} "
                    f"(--init {folder} keeps what was learned so far)"
                    if begun(folder)
                    else f"no checkpoint had been made yet. Repeat the command with {cure}"
                )
            )

    def read(self) -> dict[str, float]:
        """What `means` gives; begins a new average."""
        means = self.means()
        self.restart()
        return means

    def means(self) -> dict[str, float]:
        """Mean of every number, clips_per_second and the share of time spent waiting for data."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        means = {name: float(value) / self.steps for name, value in self.sums.items()}
        assert all(map(math.isfinite, means.values())), means
        return means | {"clips_per_second": self.clips / seconds, "waiting": min(1.0, self.waited / seconds)}
