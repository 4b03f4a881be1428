"""Carries out runs one after another, for tests that start it with torchrun: many runs for the price of one start.

Its argument is a JSON file: a list of {"config": path of a config.yaml, "stop": None or the step after which all processes are
interrupted, "fail": None or the rank that meets an error of its own at step 2}.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

from tubelet.errors import DataError
from tubelet.train import parallel
from tubelet.train.config import TrainConfig
from tubelet.train.loop import train


def carry_out(run: dict[str, Any]) -> None:
    def on_step(step: int, numbers: object) -> None:
        if step == run["stop"]:
            raise KeyboardInterrupt
        if run["fail"] == parallel.rank() and step == 2:
            raise DataError("this happened on one process only")

    config = TrainConfig.from_yaml(run["config"])
    with warnings.catch_warnings():
        if config.run.compile:
            warnings.simplefilter("ignore")  # torch's compiler warns about parts of its own
        try:
            train(config, on_step)
        except KeyboardInterrupt:
            parallel.wait()


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    try:
        with parallel.processes():
            for one in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
                carry_out(one)
    except DataError as error:
        sys.exit(f"error: {error}")
