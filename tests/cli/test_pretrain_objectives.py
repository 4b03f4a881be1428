"""`tubelet pretrain --objective ...` as a user types it."""

import json
from pathlib import Path

import pytest

from tubelet.cli import main
from tubelet.train.config import TrainConfig

SMALL = [
    "--model", "videomae_tiny", "--clip.size", "32", "--clip.frames", "4", "--clip.stride-frames", "2", "--loader.batch-size", "4",
    "--loader.workers", "0", "--optim.steps", "2", "--run.validations", "0", "--run.report", "false", "--run.device", "cpu",
    "--model.options", "{patch: 8, width: 32, depth: 1, heads: 2, decoder_width: 16, decoder_depth: 1, decoder_heads: 2}",
]  # fmt: skip


def pretrain(folder: Path, out: Path, *more: str) -> int:
    return main(["pretrain", str(folder), "--out", str(out), *SMALL, *more])


def test_dual_masking_and_every_objective(motion_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos = motion_folder / "unlabelled"
    assert pretrain(videos, tmp_path / "dual", "--masked.decoder-mask", "running_cell", "--masked.decoder-ratio", "0.5") == 0
    assert TrainConfig.from_yaml(tmp_path / "dual" / "config.yaml").masked.decoder_mask == "running_cell"
    words = ["--next-token.vocabulary", "8", "--next-token.samples", "50"]
    assert pretrain(videos, tmp_path / "words", "--objective", "next_token", *words) == 0
    words = [word.replace("--", "--combined.") for word in words]
    assert (
        pretrain(videos, tmp_path / "both", "--objective", "combined", "--combined.masked.decoder-mask", "running_cell", *words)
        == 0
    )
    teacher = str(tmp_path / "dual")
    distilled = ["--objective", "distill", "--distill.video-teacher", teacher, "--distill.decoder-mask", "running_cell"]
    assert pretrain(videos, tmp_path / "taught", *distilled, "--json") == 0
    printed = capsys.readouterr()
    assert printed.err.count("8 codewords from 50 tubelets: mean squared error") == 2
    said = json.loads(printed.out[printed.out.index("{") :])
    assert said["steps"] == 2 and said["numbers"]["loss"] > 0
    made = json.loads((tmp_path / "taught" / "model" / "config.json").read_text())
    assert made["options"]["teachers"] == {"video": 32} and list(made["trained"]["teachers"]) == [teacher]
    assert pretrain(videos, tmp_path / "taught", *distilled) == 0  # finished: nothing to do
    assert "is finished" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "message"), [
    (["--objective", "combined", "--masked.ratio", "0.5"], "did you mean '--combined.masked.ratio'?"),
    (["--objective", "distill", "--masked.ratio", "0.5", "--distill.video-teacher", "x"], "did you mean '--distill.ratio'?"),
    (["--next-token.vocabulary", "9"], "says nothing to a run whose objective is masked, or set --objective next_token"),
    (["--objective", "next_tokens"], "unknown objective 'next_tokens': did you mean 'next_token'?"),
    (["--objective", "distill"], "distill has no teacher: give a model folder as distill.video_teacher"),
    (["--objective", "distill", "--distill.video-teacher", "nowhere"], "no model at"),
    (["--objective", "combined", "--combined.contrastive-weight", "1"], "have no caption, the first is"),
])  # fmt: skip
def test_bad_words_are_one_line(words: list[str], message: str, motion_folder: Path, tmp_path: Path,
                                capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    assert pretrain(motion_folder / "unlabelled", tmp_path / "run", *words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err.splitlines()[-1], printed.err
    assert not (tmp_path / "run" / "config.yaml").exists()
