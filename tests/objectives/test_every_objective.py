"""What every objective file must offer, and that its loss can be learned."""

import dataclasses
from types import ModuleType
from typing import Any

import pytest
import torch

from tubelet import find, models
from tubelet.models._model import Model
from tubelet.objectives import combined, distill, next_token
from tubelet.records import Batch, ClipSpec
from tubelet.train.config import TrainConfig

SPEC = ClipSpec(frames=4, size=32, stride_frames=1)
SMALL = dict(width=32, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2, patch=8)
NAMES = find.names("tubelet.objectives")
WORDS = next_token.NextTokenConfig(vocabulary=16, samples=200)
CONFIGS = {  # of those whose defaults want something more, or take long
    "combined": combined.CombinedConfig(next_token=WORDS),
    "distill": distill.DistillConfig(video_teacher="pixels"),
    "next_token": WORDS,
}


def made(name: str) -> tuple[ModuleType, Any, Model]:
    """The objective, settings, and a model that has what it needs."""
    objective = find.module("tubelet.objectives", name)
    config = CONFIGS.get(name, objective.Config())
    needed = objective.options(config) if hasattr(objective, "options") else {}
    name, sizes = "videomae_tiny", SMALL | needed
    if getattr(objective, "NEEDS_TEXT", False) is True:
        name, sizes = "video_text_tiny", dict(video_options=SMALL | needed, text=dict(width=16, depth=1, heads=2), width=16)
    model = models.build(name, SPEC, ("x", "y") if objective.NEEDS_LABELS else (), **sizes)
    return objective, config, model


@pytest.fixture
def clips() -> Batch:
    frames = torch.randint(0, 256, (6, 4, 3, 32, 32), dtype=torch.uint8)
    labels, texts = torch.tensor([0, 1, 0, 1, 0, 1]), [f"the clip called {name}" for name in "abcdef"]
    return Batch(frames, torch.zeros(6, 4, dtype=torch.float64), list("abcdef"), labels, texts=texts)


@pytest.mark.parametrize("name", NAMES)
def test_it_has_settings_that_a_run_can_hold(name: str) -> None:
    objective = find.module("tubelet.objectives", name)
    assert dataclasses.is_dataclass(objective.Config)
    assert getattr(TrainConfig(out=""), name) == objective.Config()


@pytest.mark.parametrize("name", NAMES)
def test_its_loss_falls_on_a_fixed_batch(name: str, clips: Batch) -> None:
    objective, config, model = made(name)
    if hasattr(objective, "prepare"):
        objective.prepare(model, iter([clips] * 999), config, torch.Generator())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss, numbers = objective.loss(model, clips, config, torch.Generator().manual_seed(0))
        assert loss.ndim == 0 and all(value.ndim == 0 for value in numbers.values())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_measure_averages_to_the_loss(name: str, clips: Batch) -> None:
    objective, config, model = made(name)
    with torch.no_grad():
        loss, _ = objective.loss(model.eval(), clips, config, torch.Generator().manual_seed(0))
        found = objective.measure(model, clips, config, torch.Generator().manual_seed(0))
    assert all(values.shape == (6,) for values in found.values())
    assert found["loss"].mean().item() == pytest.approx(loss.item(), rel=1e-5)
