"""Reads checkpoints and writes them again as the processes that were started hold them.

Its argument is a JSON file: a list of {"source": checkpoint folder, "target": folder for the new one, "way": "ddp" or "fsdp"}.
"""

import json
import sys
import warnings
from pathlib import Path

import torch

from tubelet.train import checkpoint, optim, parallel
from tubelet.train.config import OptimConfig
from tubelet.weights.checkpoint import read
from tubelet.weights.load import rebuild


def resave(source: str, target: str, way: str) -> None:
    found = read(Path(source), verify=False)
    model = rebuild(found.description, source)
    for value in model.state_dict().values():
        value.fill_(torch.nan)
    for name, p in model.named_parameters():
        p.requires_grad_(f"{name}.step" in found.outline("optimizer"))
    parallel.spread(model, way, torch.device("cpu"), compiled=False)
    optimizer = optim.adamw(model, OptimConfig())
    ema = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    checkpoint.restore(found, model, optimizer, ema)
    for buffer in model.buffers():
        buffer += parallel.rank()  # it is a process's own; the first one's counts
    writer = checkpoint.Writer(Path(target), keep=1)
    writer.begin(found.state, model, optimizer, ema)
    writer.wait()
    writer.close()


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    with parallel.processes():
        for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
            resave(**job)
