"""The classification objective against numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from tubelet.errors import ConfigError
from tubelet.objectives import classify
from tubelet.records import Batch


class Fixed(nn.Module):
    """Logits that are a linear function of each clip's mean colour, easy to repeat in numpy."""

    class_names = ("a", "b", "c")

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(frames.float().mean(dim=(1, 3, 4)) / 255)}


def batch() -> Batch:
    frames = torch.randint(0, 256, (5, 4, 3, 8, 8), dtype=torch.uint8)
    return Batch(frames, torch.zeros(5, 4, dtype=torch.float64), list("vwxyz"), torch.tensor([0, 1, 2, 1, 0]))


def log_softmax(logits: torch.Tensor) -> np.ndarray:
    values = logits.detach().double().numpy()
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_accuracy(smoothing: float) -> None:
    model, clips = Fixed(), batch()
    loss, numbers = classify.loss(model, clips, classify.ClassifyConfig(label_smoothing=smoothing), torch.Generator())
    logs = log_softmax(model(clips.frames)["logits"])
    assert clips.labels is not None
    labels = clips.labels.numpy()
    wanted = -(1 - smoothing) * logs[np.arange(5), labels].mean() - smoothing * logs.mean()
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    assert numbers["accuracy"].item() == pytest.approx((logs.argmax(1) == labels).mean())


def test_measure_is_one_number_a_clip_whatever_the_smoothing() -> None:
    model, clips = Fixed(), batch()
    found = classify.measure(model, clips, classify.ClassifyConfig(label_smoothing=0.5, mixup=0.8), torch.Generator())
    logs = log_softmax(model(clips.frames)["logits"])
    assert clips.labels is not None
    labels = clips.labels.numpy()
    np.testing.assert_allclose(found["loss"].detach().numpy(), -logs[np.arange(5), labels], rtol=1e-5)
    np.testing.assert_array_equal(found["top1"].numpy(), logs.argmax(1) == labels)


def test_mixup_makes_soft_targets_and_repeats_itself() -> None:
    model, clips, config = Fixed(), batch(), classify.ClassifyConfig(mixup=0.8)
    first, again = (classify.loss(model, clips, config, torch.Generator().manual_seed(3))[0] for _ in range(2))
    plain, _ = classify.loss(model, clips, classify.ClassifyConfig(), torch.Generator().manual_seed(3))
    assert torch.equal(first, again) and not torch.equal(first, plain)


def test_unlabelled_clips_are_refused() -> None:
    clips = batch()
    clips.labels = None
    with pytest.raises(ConfigError, match="clips without labels cannot be classified: give labelled videos"):
        classify.loss(Fixed(), clips, classify.ClassifyConfig(), torch.Generator())


@pytest.mark.parametrize("settings", [{"label_smoothing": 1.0}, {"mixup": -1.0}, {"cutmix": -0.1}])
def test_impossible_settings(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"classify.{next(iter(settings))} is"):
        classify.ClassifyConfig(**settings)
