"""Clips of requests that come at the same time become one batch of one forward pass.

B clips of a batch, T frames, C colours, H height, W width.
"""

import queue
import threading
import time
from concurrent.futures import Future

import torch
from torch import Tensor

from tubelet.models._model import Model

Output = dict[str, Tensor]


class Batcher:
    """A model that many threads may ask at once.

    One thread runs the model, on at most `most` clips at a time; after the first it waits `wait_seconds` for others. `sizes`
    counts the batches by their number of clips.
    """

    def __init__(self, model: Model, most: int = 8, wait_seconds: float = 0.005) -> None:
        self.model, self.most, self.wait_seconds = model.eval(), most, wait_seconds
        self.sizes: dict[int, int] = {}
        self.device = next(model.parameters()).device
        self._waiting: queue.SimpleQueue[tuple[Tensor, Future[Output]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="tubelet-batcher", daemon=True)
        self._thread.start()

    def ask(self, frames: Tensor) -> Future[Output]:
        """For one clip (1,T,C,H,W) uint8 the model's "logits" and "embedding", as far as it gives them, each (1,...) on the CPU. A
        future that is cancelled in time costs nothing."""
        answer: Future[Output] = Future()
        self._waiting.put((frames, answer))
        return answer

    def close(self) -> None:
        """Answers what waits, then ends."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        going = True
        while going:
            first = self._waiting.get()
            if first is None:
                return
            batch = [first]
            until = time.monotonic() + self.wait_seconds
            while len(batch) < self.most:
                try:
                    more = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
                except queue.Empty:
                    break
                if more is None:
                    going = False
                    break
                batch.append(more)
            wanted = [(frames, answer) for frames, answer in batch if answer.set_running_or_notify_cancel()]
            if wanted:
                self._answer(wanted)

    @torch.no_grad()
    def _answer(self, batch: list[tuple[Tensor, Future[Output]]]) -> None:
        self.sizes[len(batch)] = self.sizes.get(len(batch), 0) + 1
        try:
            out = self.model(torch.cat([frames for frames, _ in batch]).to(self.device))
            kept = {name: out[name].float().cpu() for name in ("logits", "embedding") if name in out}
        except Exception as error:  # whoever asked gets it; the thread goes on for the others
            for _, answer in batch:
                answer.set_exception(error)
            return
        for place, (_, answer) in enumerate(batch):
            answer.set_result({name: values[place : place + 1] for name, values in kept.items()})
