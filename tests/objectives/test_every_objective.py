"""What every objective file must offer, and that its loss can be learned."""

import dataclasses
from types import ModuleType

import pytest
import torch

from tubelet import find, models
from tubelet.models._model import Model
from tubelet.records import Batch, ClipSpec
from tubelet.train.config import TrainConfig

SPEC = ClipSpec(frames=4, size=32, stride_frames=1)
SMALL = dict(width=32, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2, patch=8)
NAMES = find.names("tubelet.objectives")


@pytest.fixture
def clips() -> Batch:
    frames = torch.randint(0, 256, (6, 4, 3, 32, 32), dtype=torch.uint8)
    seconds, labels = torch.zeros(6, 4, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 0, 1])
    return Batch(frames, seconds, list("abcdef"), labels, texts=[f"this is {letter}" for letter in "abcdef"])


def model_for(objective: ModuleType) -> Model:
    """Small, and what the objective needs: classes, or a text tower."""
    if getattr(objective, "NEEDS_TEXT", False):
        text = dict(width=16, depth=1, heads=2)
        return models.build("video_text_tiny", SPEC, video_options=SMALL, text=text, width=16)
    return models.build("videomae_tiny", SPEC, ("x", "y") if objective.NEEDS_LABELS else (), **SMALL)


@pytest.mark.parametrize("name", NAMES)
def test_it_has_settings_that_a_run_can_hold(name: str) -> None:
    objective = find.module("tubelet.objectives", name)
    assert dataclasses.is_dataclass(objective.Config)
    assert getattr(TrainConfig(out=""), name) == objective.Config()


@pytest.mark.parametrize("name", NAMES)
def test_its_loss_falls_on_a_fixed_batch(name: str, clips: Batch) -> None:
    objective = find.module("tubelet.objectives", name)
    model = model_for(objective)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss, numbers = objective.loss(model, clips, objective.Config(), torch.Generator().manual_seed(0))
        assert loss.ndim == 0 and all(value.ndim == 0 for value in numbers.values())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_measure_averages_to_the_loss(name: str, clips: Batch) -> None:
    objective = find.module("tubelet.objectives", name)
    model = model_for(objective).eval()
    with torch.no_grad():
        loss, _ = objective.loss(model, clips, objective.Config(), torch.Generator().manual_seed(0))
        found = objective.measure(model, clips, objective.Config(), torch.Generator().manual_seed(0))
    assert all(values.shape == (6,) for values in found.values())
    assert found["loss"].mean().item() == pytest.approx(loss.item(), rel=1e-5)
