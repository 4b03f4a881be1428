"""The loop on real videos: what it writes, what its settings do, and that it ends as the mathematics says."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tubelet
from tubelet import models
from tubelet.errors import CheckpointError, ConfigError, DataError, TrainingError, TubeletError
from tubelet.evaluate.sides import met
from tubelet.records import ClipSpec
from tubelet.train import parallel
from tubelet.train.config import TrainConfig
from tubelet.train.loop import train
from tubelet.weights.checkpoint import read
from tubelet.weights.load import load_model

Make = Callable[..., TrainConfig]


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model" / "model.safetensors")


def log(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_pretraining_leaves_a_run_folder_that_explains_itself(
    pretrain_config: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    config = pretrain_config(run__checkpoint_every=5, run__report=True)
    run = train(config)
    text = capsys.readouterr().err
    for word in ("4 frames at stride 2", "tokens", "M parameters", "GMAC", "12 of 4 clips", "learning rate", "of memory"):
        assert word in text, text
    assert TrainConfig.from_yaml(run / "config.yaml") == config
    environment = json.loads((run / "environment.json").read_text())
    assert environment["torch"] == torch.__version__ and environment["tubelet"] == tubelet.__version__
    assert environment["data"]["videos"] > 0
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [
        "step_00000010", "step_00000012"]  # fmt: skip
    entries = log(run)
    assert [entry["step"] for entry in entries] == [2, 4, 6, 8, 10, 12]
    for entry in entries:
        assert {
            "loss",
            "lr",
            "gradient_norm",
            "clips_per_second",
            "waiting",
            "epoch",
            "seconds",
            "skipped",
            "padded",
        } <= entry.keys()
        assert 0 <= entry["waiting"] <= 1 and math.isfinite(entry["loss"])
    assert (run / "report.html").exists()
    model = load_model(run)
    assert model.spec == config.clip and model.decoder is not None
    assert json.loads((run / "model" / "config.json").read_text())["trained"]["objective"] == "masked"


def test_fine_tuning_starts_from_the_pretrained_weights(
    pretrain_config: Make, finetune_config: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrained = train(pretrain_config("pretrained"))
    capsys.readouterr()
    config = finetune_config("tuned", str(pretrained), optim__steps=1, optim__lr=1e-12)
    tuned = train(config)
    assert "new: fc_norm.weight, fc_norm.bias, head.weight, head.bias" in capsys.readouterr().err
    before, after = weights(pretrained), weights(tuned)
    for name in after:
        if name.startswith(("embed.", "blocks.")):
            torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-8)
    assert load_model(tuned).class_names == ("translate_left", "translate_right")
    assert log(tuned)[-1].keys() >= {"val_top1", "val_loss", "val_videos", "accuracy"}


def test_a_finished_run_says_so_and_stays_as_it_is(pretrain_config: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(pretrain_config())
    before = (run / "model" / "model.safetensors").stat().st_mtime_ns
    assert train(pretrain_config()) == run
    assert "is finished (12 steps): nothing to do" in capsys.readouterr().err
    assert (run / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_a_finished_run_without_checkpoints_is_still_finished(
    pretrain_config: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(pretrain_config())
    before = (run / "model" / "model.safetensors").stat().st_mtime_ns
    shutil.rmtree(run / "checkpoints")
    assert train(pretrain_config()) == run
    assert "is finished (12 steps): nothing to do" in capsys.readouterr().err
    assert (run / "model" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="optim.steps was 12, is 13"):
        train(pretrain_config(optim__steps=13))


@pytest.mark.parametrize("wrong", [
    {"optim__warmup": "20 steps"}, {"model__options__heads": 5}, {"objective": "classify", "data__val_split": "nowhere"},
    {"model__name": "single_frame", "model__options": {}}, {"optim__lr": 1e30, "optim__warmup": "0"},
])  # fmt: skip
def test_a_first_attempt_that_failed_does_not_hold_the_folder(pretrain_config: Make, wrong: dict[str, object]) -> None:
    with pytest.raises(TubeletError):
        train(pretrain_config(**wrong))
    right = pretrain_config()
    assert right.optim.warmup == "5%"  # nothing is taken over from the attempt
    run = train(right)
    assert TrainConfig.from_yaml(run / "config.yaml") == right and len(log(run)) == 6


def test_going_on_elsewhere_is_said(pretrain_config: Make, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(step: int, numbers: dict[str, Tensor]) -> None:
        if step == 5:
            raise KeyboardInterrupt

    config = pretrain_config(run__checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        train(config, stop)
    path = Path(config.out) / "environment.json"
    with pytest.raises(KeyboardInterrupt):
        train(config, stop)
    assert "bit for bit" not in capsys.readouterr().err
    path.write_text(json.dumps({**json.loads(path.read_text()), "torch": "1.0"}))
    for _ in range(2):  # it stays true until the end
        with pytest.raises(KeyboardInterrupt):
            train(config, stop)
        assert (
            f"not be bit for bit that of a run without a break: torch was 1.0, is {torch.__version__}"
            in capsys.readouterr().err
        )


def test_the_same_seed_gives_the_same_bits_and_another_does_not(pretrain_config: Make) -> None:
    first, again = train(pretrain_config("a")), train(pretrain_config("b"))
    other = train(pretrain_config("c", run__seed=1))
    assert same(weights(first), weights(again)) and not same(weights(first), weights(other))
    assert [e["loss"] for e in log(first)] == [e["loss"] for e in log(again)]


@pytest.mark.parametrize("changes", [
    {"run__validations": 0}, {"run__log_every": 5}, {"run__checkpoint_every": 1}, {"loader__workers": 2}, {"loader__cache": "off"},
    {"loader__cache": "off", "loader__workers": 2}, {"run__recompute": True},
])  # fmt: skip
def test_what_is_only_watched_changes_no_bit(finetune_config: Make, changes: dict[str, object]) -> None:
    plain = weights(train(finetune_config("plain", model__options__drop_path=0.3)))
    assert same(plain, weights(train(finetune_config("changed", model__options__drop_path=0.3, **changes))))


def test_recomputing_in_bf16_changes_no_bit(pretrain_config: Make) -> None:
    """Its attention has a backward pass of our own (see `_transformer.py`)."""
    settings = {"run__precision": "bf16", "model__options__drop_path": 0.3}
    plain = train(pretrain_config("plain", **settings))
    again = train(pretrain_config("again", **settings, run__recompute=True))
    assert [entry["loss"] for entry in log(plain)] == [entry["loss"] for entry in log(again)]
    assert same(weights(plain), weights(again))


def test_accumulated_small_batches_equal_the_big_batch(pretrain_config: Make) -> None:
    """One step; Adam's first moment in the checkpoint is then a tenth of the gradient itself."""
    big = train(pretrain_config("big", loader__batch_size=8, optim__steps=1))
    small = train(pretrain_config("small", loader__batch_size=2, optim__accumulate=4, optim__steps=1))
    one, four = log(big)[0], log(small)[0]
    for name in ("loss", "gradient_norm", "epoch", "lr"):
        assert one[name] == pytest.approx(four[name], rel=1e-5), name
    ours, theirs = (read(run / "checkpoints" / "step_00000001").everything() for run in (big, small))
    for key in ours:
        if key.endswith("exp_avg"):
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=1e-7)


def test_one_step_by_hand(finetune_config: Make) -> None:
    """The first step against its formula: Adam's first update is lr * sign(gradient), decay lr * wd * weight."""
    from tubelet.loading import TrainLoader
    from tubelet.train import data
    from tubelet.train.loop import new_model

    config = finetune_config(optim__steps=1, optim__lr=1e-3, optim__warmup="0", optim__clip_gradient=0, optim__layer_decay=1.0,
                             optim__weight_decay=0.1, classify__mixup=0, model__options__drop_path=0.0)  # fmt: skip
    train_set, _ = data.load(config.data, needs_labels=True)
    model = new_model(config, train_set, with_classes=True)
    batch = next(iter(TrainLoader(train_set, config.clip, config.augment, config.loader, config.run.seed).batches(0, 1)))
    smoothing = config.classify.label_smoothing
    torch.nn.functional.cross_entropy(model(batch.frames)["logits"], batch.labels, label_smoothing=smoothing).backward()
    after = weights(train(config))
    for name, p in model.named_parameters():
        assert p.grad is not None
        decayed = p.detach() * (1 - 1e-3 * 0.1) if p.ndim > 1 else p.detach()
        wanted = decayed - 1e-3 * p.grad / (p.grad.abs() + 1e-8)
        torch.testing.assert_close(after[name], wanted, rtol=1e-3, atol=1e-5)


def test_moving_average_is_what_is_left(pretrain_config: Make) -> None:
    """Against an average made here, step by step, from the weights that a run of each length leaves."""
    runs = [
        weights(train(pretrain_config(f"{n}", optim__steps=n, optim__lr=1e-2, optim__warmup="0", optim__min_lr=1e-2)))
        for n in (1, 2, 3)
    ]
    averaged = weights(
        train(pretrain_config("ema", optim__steps=3, optim__lr=1e-2, optim__warmup="0", optim__min_lr=1e-2, optim__ema=0.15))
    )
    first = weights(train(pretrain_config("start", optim__steps=1, optim__lr=1e-30, optim__min_lr=0, optim__warmup="0")))
    for name in averaged:
        expected = first[name]
        for step, run in enumerate(runs):
            decay = min(0.15, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * run[name]
        torch.testing.assert_close(averaged[name], expected, rtol=1e-4, atol=1e-6)


def test_freezing_trains_exactly_the_head(finetune_config: Make, capsys: pytest.CaptureFixture[str]) -> None:
    first = weights(train(finetune_config("start", optim__freeze=True, optim__steps=1, optim__lr=1e-30, optim__warmup="0")))
    frozen = weights(train(finetune_config("frozen", optim__freeze=True, optim__lr=1e-2)))
    assert f"{32 * 2 + 2} parameters are trained" in capsys.readouterr().err
    assert {name for name in frozen if not torch.equal(frozen[name], first[name])} == {"head.weight", "head.bias"}


def test_a_frozen_body_drops_no_path(finetune_config: Make) -> None:
    def run(name: str, **settings: object) -> list[float]:
        return [entry["loss"] for entry in log(train(finetune_config(name, run__log_every=1, **settings)))]

    frozen = {"optim__freeze": True, "classify__mixup": 0}
    assert run("a", **frozen, model__options__drop_path=0.9) == run("b", **frozen, model__options__drop_path=0.0)
    assert run("c", model__options__drop_path=0.9) != run("d", model__options__drop_path=0.0)


def test_threads_of_a_run_are_those_asked_for(pretrain_config: Make) -> None:
    before = torch.get_num_threads()
    try:
        run = train(pretrain_config(run__threads=before + 1, optim__steps=1))
        assert torch.get_num_threads() == before + 1
        assert json.loads((run / "environment.json").read_text())["threads"] == before + 1
    finally:
        torch.set_num_threads(before)


def test_bf16_keeps_norms_and_residual_in_float32(pretrain_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from tubelet.models import _transformer

    inputs: list[torch.dtype] = []
    forward = _transformer.Block.forward

    def watched(self: _transformer.Block, x: Tensor, *more: Any, **options: Any) -> Tensor:
        y = forward(self, x, *more, **options)
        inputs.extend([x.dtype, y.dtype])
        return y

    monkeypatch.setattr(_transformer.Block, "forward", watched)
    exact, rough = train(pretrain_config("fp32")), train(pretrain_config("bf16", run__precision="bf16"))
    assert set(inputs) == {torch.float32}
    assert all(value.dtype == torch.float32 for value in weights(rough).values())
    assert not same(weights(exact), weights(rough))
    for a, b in zip(log(exact), log(rough), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=0.02)


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about parts of its own
def test_compiled_gives_the_same_losses(pretrain_config: Make) -> None:
    settings = dict(optim__steps=2, model__options__depth=1)  # every block costs seconds of compiling
    plain, compiled = (
        train(pretrain_config("plain", **settings)),
        train(pretrain_config("compiled", **settings, run__compile=True)),
    )
    for a, b in zip(log(plain), log(compiled), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    assert weights(compiled).keys() == weights(plain).keys()


@pytest.mark.slow  # up to a minute for each of them
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_compiled_in_any_mode_gives_the_same_losses(pretrain_config: Make, mode: str) -> None:
    settings = dict(optim__steps=2, model__options__depth=1)
    plain, compiled = (
        train(pretrain_config("plain", **settings)),
        train(pretrain_config("compiled", **settings, run__compile=mode)),
    )
    for a, b in zip(log(plain), log(compiled), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_without_a_compiler_one_line_says_so(pretrain_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(ConfigError, match=r"run.compile needs a compiler, and there is no /nowhere/g\+\+: install one"):
        train(pretrain_config("never", run__compile=True))
    assert not (Path(pretrain_config("never").out) / "config.yaml").exists()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=r"there is no (g|clang)\+\+: install one"):
        train(pretrain_config("never", run__compile=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("asked", [True, "reduce-overhead", "max-autotune"])
def test_the_mode_reaches_the_compiler(asked: bool | str) -> None:
    """Seen by what torch keeps of it: the options that the compiler of this very model was made with."""
    model = models.build("videomae_tiny", ClipSpec(frames=4, size=32), ["a"], width=12, depth=1, heads=1, patch=16)
    net = parallel.spread(model, "ddp", torch.device("cpu"), asked)
    options = net.dynamo_ctx.compiler_config or {}  # type: ignore[union-attr]
    assert bool(options.get("triton.cudagraphs")) is (asked is not True)
    assert bool(options.get("max_autotune")) is (asked == "max-autotune")


def test_the_loss_falls(finetune_config: Make) -> None:
    run = train(
        finetune_config(
            optim__steps=60,
            optim__lr=3e-3,
            classify__mixup=0,
            augment__crop="center",
            augment__color_jitter=0,
            run__log_every=10,
        )
    )
    losses = [entry["loss"] for entry in log(run)]
    assert losses[-1] < losses[0]


def test_on_step_sees_every_step(pretrain_config: Make) -> None:
    seen: list[tuple[int, float]] = []
    train(pretrain_config(), on_step=lambda step, numbers: seen.append((step, float(numbers["loss"]))))
    assert [step for step, _ in seen] == list(range(1, 13))


# What goes wrong --------------------------------------------------------------------------------------------------------


def test_other_settings_in_a_run_folder_are_named(pretrain_config: Make) -> None:
    run = train(pretrain_config())
    with pytest.raises(ConfigError, match=r"holds a run with other settings: optim.base_lr was .*, is 0.5"):
        train(pretrain_config(optim__base_lr=0.5))
    assert train(pretrain_config(run__log_every=1, loader__workers=1)) == run  # what decides nothing may change


@pytest.mark.parametrize(("name", "value"), [("cache", "off"), ("approximate", True)])
def test_where_the_pixels_come_from_may_not_change_on_the_way(pretrain_config: Make, name: str, value: object) -> None:
    """Clips cut from cached frames, and approximate ones, have other pixels."""
    train(pretrain_config())
    with pytest.raises(
        ConfigError, match=rf"holds a run with other settings: loader\.{name} was .*, is {value!r}\. Choose another"
    ):
        train(pretrain_config(**{f"loader__{name}": value}))


def test_the_plan_says_how_videos_are_decoded(pretrain_config: Make, capsys: pytest.CaptureFixture[str]) -> None:
    train(pretrain_config("exact", optim__steps=1))
    assert "approximately" not in capsys.readouterr().err
    fast = pretrain_config("fast", optim__steps=1, loader__approximate=True, loader__cache="off", run__report=True)
    run = train(fast)
    assert "decoded as needed, approximately (no deblocking)" in capsys.readouterr().err
    assert json.loads((run / "environment.json").read_text())["decoding"] == "approximately (no deblocking)"
    assert "approximately (no deblocking)" in (run / "report.html").read_text()
    assert met(run, []).note == "trained on videos decoded approximately (no deblocking), evaluated on exact frames"
    (run / "report.html").unlink()
    train(fast)
    assert "continuing" in (said := capsys.readouterr().err) and "videos are decoded approximately (no deblocking)" in said


def test_other_videos_in_a_run_folder_are_noticed(motion_folder: Path, pretrain_config: Make, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(motion_folder, videos)
    changed = dataclasses.replace(pretrain_config().data, train=(str(videos),))
    config = dataclasses.replace(pretrain_config(), data=changed)
    train(config)
    next(videos.rglob("*.mp4")).unlink()
    with pytest.raises(ConfigError, match=r"the videos changed since this run began \(16 then, 15 now"):
        train(config)


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_last_good_checkpoint(
    pretrain_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tubelet.objectives import masked

    honest = masked.loss
    calls = 0

    def spoiled(*arguments):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        loss, numbers = honest(*arguments)
        return (loss * float("nan") if calls > 7 + 2 else loss), numbers  # 2 calls belong to the plan

    monkeypatch.setattr(masked, "loss", spoiled)
    config = pretrain_config(run__checkpoint_every=3, run__log_every=100)
    with pytest.raises(TrainingError, match="not finite at step 8; the last good checkpoint is kept"):
        train(config)
    kept = sorted(path.name for path in (Path(config.out) / "checkpoints").iterdir())
    assert kept == ["step_00000003", "step_00000006"]
    assert all(torch.isfinite(value).all() for value in read(Path(config.out) / "checkpoints" / kept[-1]).everything().values())


def test_a_validation_loss_that_is_not_finite(finetune_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from tubelet.objectives import classify

    honest = classify.measure

    def spoiled(*arguments):  # type: ignore[no-untyped-def]
        return {name: value / 0 for name, value in honest(*arguments).items()}

    monkeypatch.setattr(classify, "measure", spoiled)
    with pytest.raises(TrainingError, match="val_loss is not finite after step 6, .* --run.validations 0"):
        train(finetune_config())


def test_too_little_memory_on_the_gpu(pretrain_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from tubelet.objectives import masked

    def full(*arguments):  # type: ignore[no-untyped-def]
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(masked, "loss", full)
    with pytest.raises(TrainingError, match=r"batches of 4 clips: lower --loader.batch-size .*--optim.accumulate \(now 1\)"):
        train(pretrain_config())


def test_a_line_of_progress_between_lines_of_the_log(
    pretrain_config: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tubelet.train import log as train_log

    plain = train(pretrain_config("plain", run__log_every=6))
    assert "step 5/12" not in capsys.readouterr().err
    monkeypatch.setattr(train_log, "SECONDS_BETWEEN_LINES", 0)
    watched = train(pretrain_config("watched", run__log_every=6))
    shown = capsys.readouterr().err
    assert all(f"step {step}/12" in shown for step in range(1, 13))
    assert [(entry["step"], entry["loss"]) for entry in log(watched)] == [
        (entry["step"], entry["loss"]) for entry in log(plain)
    ]


def test_a_learning_rate_that_explodes(finetune_config: Make) -> None:
    with pytest.raises(TrainingError, match="no checkpoint had been made yet. Repeat the command with a lower --optim.base-lr"):
        train(finetune_config(optim__lr=1e30, optim__clip_gradient=0, optim__warmup="0"))


def test_a_run_folder_that_is_a_file(pretrain_config: Make, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(CheckpointError, match="cannot write the run folder .*choose another --out"):
        train(pretrain_config("taken/run"))


def test_a_run_that_could_not_begin_leaves_nothing(pretrain_config: Make, tmp_path: Path) -> None:
    for settings, message in (({"objective": "distill"}, "no teacher"), ({"objective": "contrastive"}, "text")):
        config = pretrain_config("runs/one", **settings)
        with pytest.raises(TubeletError, match=message):
            train(config)
        assert not (tmp_path / "runs").exists()
    (tmp_path / "mine").mkdir()  # was there before, and stays
    with pytest.raises(TubeletError, match="no teacher"):
        train(pretrain_config("mine", objective="distill"))
    assert (tmp_path / "mine").is_dir()


def test_two_runs_in_one_folder(pretrain_config: Make) -> None:
    config = pretrain_config()
    with pytest.raises(CheckpointError, match="another process is training in"):
        train(config, on_step=lambda step, numbers: train(config) and None)


def test_no_readable_video(tmp_path: Path) -> None:
    from tubelet.recipes import pretraining

    (tmp_path / "bad").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "bad" / name).write_text("this is no video")
    config = pretraining([str(tmp_path / "bad")], str(tmp_path / "run"), {
        "model.name": "videomae_tiny", "clip.size": 32, "clip.frames": 4, "optim.steps": 50, "optim.epochs": None,
        "model.options": {"patch": 8, "width": 32, "heads": 2}, "loader.batch_size": 4, "loader.workers": 0})  # fmt: skip
    with pytest.raises(TrainingError, match="not one of the videos can be read: .*mp4: .*; run `tubelet inspect`"):
        train(config)


def test_no_readable_validation_video(finetune_config: Make, motion_folder: Path, tmp_path: Path) -> None:
    for label in ("translate_left", "translate_right"):
        (tmp_path / "val" / label).mkdir(parents=True)
        (tmp_path / "val" / label / "a.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match="not one of the validation videos can be read: .*a.mp4: "):
        train(finetune_config(data__val=[str(tmp_path / "val")]))


def test_an_unreadable_video_is_left_out_and_counted(
    motion_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tubelet.recipes import fine_tuning

    shutil.copytree(motion_folder, tmp_path / "videos")
    broken = next((tmp_path / "videos" / "train" / "translate_left").iterdir())
    broken.write_bytes(broken.read_bytes()[:200])
    config = fine_tuning(None, [str(tmp_path / "videos")], str(tmp_path / "run"), {
        "model.name": "videomae_tiny", "clip.size": 32, "clip.frames": 4, "optim.epochs": 2, "run.log_every": 1,
        "model.options": {"patch": 8, "width": 32, "heads": 2}, "loader.batch_size": 2, "loader.repeats": 2})  # fmt: skip
    run = train(config)
    assert log(run)[-1]["skipped"] == 2  # once an epoch
    assert capsys.readouterr().err.count(f"left out: {broken.relative_to(tmp_path / 'videos').as_posix()}") == 1


def test_one_class_only(motion_folder: Path, tmp_path: Path) -> None:
    from tubelet.recipes import fine_tuning

    (tmp_path / "one" / "only").mkdir(parents=True)
    for path in (motion_folder / "train" / "translate_left").iterdir():
        (tmp_path / "one" / "only" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="there is only one class"):
        fine_tuning(None, [str(tmp_path / "one")], str(tmp_path / "run"), {})


def test_a_label_in_validation_that_training_never_saw(motion_folder: Path, tmp_path: Path) -> None:
    from tubelet.recipes import fine_tuning

    for side, label in (("train", "a"), ("train", "b"), ("val", "c")):
        (tmp_path / side / label).mkdir(parents=True)
        source = next((motion_folder / "train" / "translate_left").iterdir())
        for name in ("1.mp4", "2.mp4"):
            (tmp_path / side / label / name).write_bytes(source.read_bytes())
    (tmp_path / "val" / "a").mkdir()
    (tmp_path / "val" / "a" / "3.mp4").write_bytes(source.read_bytes())
    config = fine_tuning(None, [str(tmp_path / "train")], str(tmp_path / "run"), {"data.val": [str(tmp_path / "val")]})
    with pytest.raises(DataError, match="validation has the label 'c', which training never saw"):
        train(config)


def test_a_model_of_another_family_to_start_from(pretrain_config: Make, finetune_config: Make) -> None:
    pretrained = train(pretrain_config("pretrained", optim__steps=1))
    with pytest.raises(CheckpointError, match="another model|the run wants"):
        train(finetune_config("tuned", str(pretrained), model__options={"patch": 8, "width": 64, "heads": 2, "depth": 2}))
    with pytest.raises(CheckpointError, match="no model at"):
        finetune_config("tuned2", "nowhere")


def test_running_statistics_are_those_of_the_clips(finetune_config: Make) -> None:
    """Counting what a clip costs, before the first step, is no step; its one clip would not do for batch norm either."""
    config = finetune_config(model__name="early_fusion_resnet18", model__options={"width": 4}, optim__steps=3)
    kept = weights(train(config))
    assert kept["stem.1.num_batches_tracked"] == 3 == kept["blocks.3.1.bn2.num_batches_tracked"]


def test_what_is_computed_again_moves_running_statistics_once(finetune_config: Make) -> None:
    settings: dict[str, Any] = dict(model__name="early_fusion_resnet18", model__options={"width": 4}, optim__steps=3)
    plain = weights(train(finetune_config("plain", **settings)))
    assert same(plain, weights(train(finetune_config("again", **settings, run__recompute=True))))


def test_a_model_without_blocks_has_nothing_to_compute_again(finetune_config: Make) -> None:
    config = finetune_config(model__name="r2plus1d_18", model__options={"width": 4}, optim__steps=1, run__recompute=True)
    with pytest.raises(
        ConfigError, match="run.recompute is true, but r2plus1d_18 has no blocks to compute again: leave it out"
    ):
        train(config)
    train(dataclasses.replace(config, run=dataclasses.replace(config.run, recompute=False)))
