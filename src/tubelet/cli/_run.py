"""What a training command does with its configuration, and what it answers on stdout."""

from pathlib import Path
from typing import Any

from tubelet.cli._print import emit_json, tell
from tubelet.train import parallel
from tubelet.train.config import TrainConfig
from tubelet.train.log import last_entry
from tubelet.train.loop import train


def carry_out(config: TrainConfig, print_config: bool, json: bool) -> None:
    """Train and print the run folder, or with `json` what is in it; with `print_config` print the configuration and stop."""
    if print_config:
        if not parallel.rank():
            print(config.to_yaml(), end="")
        return
    run = train(config)
    if parallel.rank():  # of several processes one answers
        return
    if json:
        emit_json(summary(run))
    else:
        tell(str(run))


def summary(run: Path) -> dict[str, Any]:
    """run, model and report (paths; None where no report was wanted), steps, and the last `numbers` of the log."""
    numbers, report = last_entry(run), run / "report.html"
    steps = numbers.pop("step", None)
    return {
        "run": str(run),
        "model": str(run / "model"),
        "report": str(report) if report.exists() else None,
        "steps": steps,
        "numbers": numbers,
    }
