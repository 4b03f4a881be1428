"""CNN and LSTM: against the recurrence written out, causality, and a CNN that stays as it is."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tubelet import models
from tubelet.errors import ConfigError
from tubelet.models.cnn_lstm import CNNLSTM
from tubelet.records import ClipSpec
from tubelet.train import optim
from tubelet.train.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from tubelet.train.loop import train
from tubelet.weights.load import load_model
from tubelet.weights.save import save

from .small import clips, randomise, small

NAMES = ("cnn_lstm_resnet18", "cnn_lstm_resnet50", "cnn_lstm_resnet18_per_frame", "cnn3d_lstm_resnet18")
CLASSES = ("a", "b", "c")
LONG = ClipSpec(frames=8, size=32)


def random_model(name: str, **options: object) -> CNNLSTM:
    model = small(name, CLASSES, **options).eval()
    assert isinstance(model, CNNLSTM)
    randomise(model, 0.2)
    with torch.no_grad():
        for name, parameter in model.cnn.named_parameters():  # norms near 1, or every feature would be nearly the same
            if "bn" in name and name.endswith("weight"):
                parameter.add_(1)
    return model


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layers", [1, 2])
def test_against_the_recurrence_written_out(name: str, layers: int) -> None:
    """Features window by window, then the equations of section 3 of the paper, gate by gate."""
    model = random_model(name, layers=layers)
    frames, window = clips(LONG), model.options["window"]
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (LONG.mean, LONG.std))
    with torch.no_grad():
        steps = ((frames / 255 - mean) / std).split(window, dim=1)  # each (B,W,C,H,W)
        shown = [step.transpose(1, 2) if "3d" in name else step[:, 0] for step in steps]
        series = [model.cnn(step).flatten(2).mean(dim=2) for step in shown]
        for layer in range(layers):
            w_in, w_state, b_in, b_state = (getattr(model.lstm, f"{kind}_l{layer}") for kind in
                                            ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))  # fmt: skip
            state = cell = torch.zeros(2, model.width)
            for t, x in enumerate(series):
                take, keep, new, show = (x @ w_in.T + b_in + state @ w_state.T + b_state).chunk(4, dim=1)
                cell = keep.sigmoid() * cell + take.sigmoid() * new.tanh()
                series[t] = state = show.sigmoid() * cell.tanh()
        wanted = torch.stack(series, dim=1)
        out = model(frames)
    assert out["tokens"].shape == (2, 8 // window, model.width)
    torch.testing.assert_close(out["tokens"], wanted, rtol=1e-4, atol=1e-5)
    chances = model.head(wanted).softmax(-1)
    if "per_frame" in name:
        torch.testing.assert_close(out["frame_logits"].softmax(-1), chances, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(out["logits"].exp(), chances.mean(dim=1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(out["embedding"], wanted.mean(dim=1), rtol=1e-4, atol=1e-5)
    else:
        assert "frame_logits" not in out
        torch.testing.assert_close(out["logits"].softmax(-1), chances[:, -1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(out["embedding"], wanted[:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("moment", [1, 4, 7])
def test_a_frames_label_does_not_depend_on_the_frames_to_come(moment: int) -> None:
    model = random_model("cnn_lstm_resnet18_per_frame")
    frames = clips(LONG)
    changed = torch.cat([frames[:, :moment], 255 - frames[:, moment:]], dim=1)
    with torch.no_grad():
        one, other = model(frames)["frame_logits"], model(changed)["frame_logits"]
        short = model(frames[:, :moment])["frame_logits"]
    assert torch.equal(one[:, :moment], other[:, :moment])
    assert ((one - other)[:, moment:].abs().amax(dim=(0, 2)) > 0).all()
    torch.testing.assert_close(short, one[:, :moment], rtol=0, atol=1e-6)


def test_a_windows_output_does_not_depend_on_the_windows_to_come() -> None:
    model = random_model("cnn3d_lstm_resnet18", many_to_many=True)
    frames = clips(LONG)
    changed = torch.cat([frames[:, :5], 255 - frames[:, 5:]], dim=1)  # in the middle of the third window of two frames
    one, other = model(frames)["frame_logits"], model(changed)["frame_logits"]
    assert one.shape == (2, 4, 3)
    assert torch.equal(one[:, :2], other[:, :2])
    assert ((one - other)[:, 2:].abs().amax(dim=(0, 2)) > 0).all()


def test_order_matters() -> None:
    for name in NAMES:
        model = random_model(name)
        frames = clips(LONG)
        assert (model(frames)["embedding"] - model(frames.flip(1))["embedding"]).abs().max() > 1e-3


# A frozen CNN ------------------------------------------------------------------------------------------------------------


def cnn_state(model: CNNLSTM) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items() if key.startswith("cnn.")}


@pytest.mark.parametrize("name", ["cnn_lstm_resnet18", "cnn_lstm_resnet18_per_frame", "cnn3d_lstm_resnet18"])
def test_a_frozen_cnn_has_no_gradients_and_stays_in_evaluation_mode(name: str) -> None:
    model = random_model(name, frozen=True)
    before = cnn_state(model)
    for into_training in (model.train, lambda: optim.training_mode(model)):
        into_training()
        assert model.training and model.lstm.training
        assert not any(module.training for module in model.cnn.modules())
        model(clips(LONG))["logits"].square().sum().backward()
        for key, parameter in model.named_parameters():
            assert (parameter.grad is None) == key.startswith("cnn."), key
    assert all(torch.equal(value, before[key]) for key, value in cnn_state(model).items())


def test_the_optimiser_skips_a_frozen_cnn() -> None:
    model = random_model("cnn_lstm_resnet18", frozen=True)
    named = [name for group in optim.groups(model, 0.05, 0.75) for name in group["names"]]
    assert sorted(named) == sorted(name for name, _ in model.named_parameters() if not name.startswith("cnn."))
    trained = random_model("cnn_lstm_resnet18")
    named = [name for group in optim.groups(trained, 0.05, 0.75) for name in group["names"]]
    assert sorted(named) == sorted(name for name, _ in trained.named_parameters())
    assert optim.freeze_all_but_head(model) == (model.width + 1) * 3


@pytest.mark.parametrize("frozen", [True, False])
def test_a_run_leaves_a_frozen_cnn_alone(frozen: bool, motion_folder: Path, tmp_path: Path) -> None:
    """Validation in the middle switches modes, and training goes on after it."""
    options = dict(channels=4, hidden=12, frozen=frozen)
    config = TrainConfig(
        out=str(tmp_path / "run"), objective="classify", data=DataConfig(train=(str(motion_folder),)),
        clip=ClipSpec(frames=4, size=32), model=ModelConfig("cnn_lstm_resnet18", options), optim=OptimConfig(steps=4, ema=0.9),
        run=RunConfig(device="cpu", report=False, threads=1, validations=2),
    )  # fmt: skip
    start = models.build("cnn_lstm_resnet18", config.clip, ("translate_left", "translate_right"), **options)
    save(start, tmp_path / "start")
    config = TrainConfig(**{**vars(config), "init": str(tmp_path / "start")})
    model = load_model(train(config))
    assert (tmp_path / "run" / "log.jsonl").read_text().count("val_loss") == 2
    assert isinstance(start, CNNLSTM) and isinstance(model, CNNLSTM) and model.options["frozen"] == frozen
    before = cnn_state(start)
    moved = [key for key, value in cnn_state(model).items() if not torch.equal(value, before[key])]
    if frozen:
        assert moved == []
    else:
        assert {"cnn.conv1.weight", "cnn.bn1.running_mean"} <= set(moved)
    assert not torch.equal(model.lstm.weight_ih_l0, start.lstm.weight_ih_l0)


# Sizes and mistakes ------------------------------------------------------------------------------------------------------


def test_size_and_cost() -> None:
    """ResNet-18 without its classifier (11,176,512, torchvision's 11,689,512 less 513,000), the LSTM's four gates, the head."""
    with torch.device("meta"):
        model = models.build("cnn_lstm_resnet18", ClipSpec(), [str(i) for i in range(101)])
        picture = models.build("single_frame_resnet18", ClipSpec(frames=1))
    cost, of_picture = models.cost(model), models.cost(picture)["gmacs"]
    assert cost["params"] == 11_176_512 + 4 * 256 * (512 + 256 + 2) + 257 * 101
    assert cost["gmacs"] == pytest.approx(16 * of_picture + (16 * 4 * 256 * (512 + 256) + 256 * 101) / 1e9, rel=1e-9)


def test_it_begins_by_remembering() -> None:
    model = small("cnn_lstm_resnet18", layers=2)
    for layer in range(2):
        bias = model.lstm.get_parameter(f"bias_ih_l{layer}") + model.lstm.get_parameter(f"bias_hh_l{layer}")
        assert torch.equal(bias, torch.tensor([0.0, 1.0, 0.0, 0.0]).repeat_interleave(model.width))


def test_what_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="got clips of 7 frames with 3 colours; it takes 3 colours and frames divisible by 2 "
                       ".set clip.frames, or the model's window"):  # fmt: skip
        random_model("cnn3d_lstm_resnet18")(torch.zeros(1, 7, 3, 32, 32))
    with pytest.raises(ConfigError, match="4 frames with 2 colours; it takes 3 colours"):
        random_model("cnn_lstm_resnet18")(torch.zeros(1, 4, 2, 32, 32))
    with pytest.raises(ConfigError, match="window is 2; it must be 1 for a picture network .resnet18."):
        small("cnn_lstm_resnet18", window=2)
    with pytest.raises(ConfigError, match="unknown cnn 'resnet19': did you mean 'resnet18'"):
        small("cnn_lstm_resnet18", cnn="resnet19")
