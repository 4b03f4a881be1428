"""log.jsonl, the progress line and the small texts."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch

from tubelet.errors import CheckpointError, MissingExtraError, TrainingError
from tubelet.train import log
from tubelet.train.meter import Meter
from tubelet.train.plan import size


def test_resuming_cuts_the_log_back_to_the_step(tmp_path: Path) -> None:
    first = log.Log(tmp_path, 0)
    for step in (2, 4, 6):
        first.write({"step": step, "loss": 1.0})
    with open(first.path, "a") as file:
        file.write('{"step": 8, "lo')  # the kill came while it was written
    log.Log(tmp_path, 4).write({"step": 6, "loss": 0.5})
    assert [json.loads(line) for line in first.path.read_text().splitlines()] == [
        {"step": 2, "loss": 1.0}, {"step": 4, "loss": 1.0}, {"step": 6, "loss": 0.5}]  # fmt: skip


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot write .*log.jsonl: .*choose another --out"):
        log.Log(tmp_path / "nowhere", 0)


def test_tensorboard_is_an_extra(tmp_path: Path) -> None:
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match=r'pip install "tubelet\[log\]"'):
            log.Log(tmp_path, 0, tensorboard=True)
    else:
        written = log.Log(tmp_path, 0, tensorboard=True)
        written.write({"step": 1, "loss": 1.0})
        written.close()
        assert list((tmp_path / "tensorboard").iterdir())


def test_progress_says_how_far_and_how_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    progress = log.Progress(steps=10, start=0)
    progress.show({"step": 1, "loss": 0.51234, "lr": 1e-3, "clips_per_second": 123.4, "waiting": 0.25, "val_top1": 0.5})
    progress.show({"step": 2, "loss": 0.5})  # too soon after the first
    progress.show({"step": 10, "loss": 0.25})  # the last is always shown
    progress.close()
    first, last = screen.getvalue().splitlines()
    for words in ("step 1/10 (10%)", "loss 0.5123", "val top-1 50.0%", "123.4 clips/s", "25% waiting for data", "left"):
        assert words in first
    assert last.startswith("step 10/10 (100%)  loss 0.25")


def test_progress_is_due_when_nothing_was_shown_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    progress = log.Progress(steps=10, start=0)
    progress.began -= 2 * log.SECONDS_BETWEEN_LINES
    assert progress.due()
    progress.show({"step": 1})
    assert not progress.due()


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (89, "89 s"), (125, "2 min"), (12345, "3 h 26 min")])
def test_durations(seconds: float, text: str) -> None:
    assert log.duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(340e6, "340 MB"), (1.24e9, "1.2 GB")])
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text


def test_the_meter_averages_and_names_the_first_bad_step(tmp_path: Path) -> None:
    meter = Meter(torch.device("cpu"))
    meter.add(1, {"loss": torch.tensor(1.0)}, 4)
    meter.add(2, {"loss": torch.tensor(3.0)}, 4)
    meter.check(tmp_path, lambda: None)
    means = meter.read()
    assert means["loss"] == 2.0 and means["clips_per_second"] > 0 and means["waiting"] == 0
    for step, value in ((3, 1.0), (4, float("inf")), (5, float("nan"))):
        meter.add(step, {"loss": torch.tensor(value)}, 4)
    with pytest.raises(TrainingError, match="not finite at step 4; no checkpoint had been made yet. Repeat the command with"):
        meter.check(tmp_path, lambda: None)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_00000002").mkdir()
    with pytest.raises(TrainingError, match="not finite at step 4; the last good checkpoint is kept in .*Start another --out"):
        meter.check(tmp_path, lambda: None)
