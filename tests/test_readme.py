"""The README's five commands, as they stand there, on a tiny folder of videos, in real processes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]

# The commands are run as printed; only their size is changed.
STEPS = ["--optim.steps", "3", "--loader.batch-size", "4", "--clip.size", "32", "--clip.stride-frames", "1"]
SMALLER = {
    "pretrain": STEPS,
    "finetune": [*STEPS, "--run.validations", "1"],
    "evaluate": ["--clips", "2", "--crops", "1"],
    "predict": ["--json"],
    "embed": ["--json"],
}


def commands() -> list[list[str]]:
    """The indented block under "Your own videos"."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^## Your own videos\n\n((?:    .+\n)+)", readme, flags=re.MULTILINE)
    assert block is not None
    return [line.split() for line in block[1].splitlines()]


def test_the_five_commands_do_the_whole_job(motion_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(motion_folder, tmp_path / "videos")
    shutil.copy(next((motion_folder / "val").rglob("*.mp4")), tmp_path / "clip.mp4")
    lines = commands()
    assert [words[1] for words in lines] == ["pretrain", "finetune", "evaluate", "predict", "embed"]
    printed = {}
    for words in lines:
        assert words[0] == "tubelet"
        done = subprocess.run(
            [sys.executable, "-m", "tubelet", *words[1:], *SMALLER[words[1]]],
            cwd=tmp_path, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, (words, done.stderr)
        printed[words[1]] = done.stdout

    classes = {"translate_left", "translate_right"}
    [answer] = json.loads(printed["predict"])
    assert {entry["class"] for entry in answer["top"]} == classes
    assert abs(sum(entry["probability"] for entry in answer["top"]) - 1) < 1e-6
    assert "random initialisation" in printed["evaluate"] and "majority class" in printed["evaluate"]
    assert (tmp_path / "runs" / "taught" / "report.html").stat().st_size > 10_000
    rows = pq.read_table(tmp_path / "features.parquet").to_pylist()
    assert len(rows) == 16 and len({row["id"] for row in rows}) == 16
