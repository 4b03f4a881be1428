"""What every variant of every family promises: named tensors, first values, gradients, round trips, export, training."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tubelet import models
from tubelet.errors import ConfigError
from tubelet.models._model import Model
from tubelet.recipes.compare import LADDER
from tubelet.records import ClipSpec
from tubelet.train.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from tubelet.train.loop import train
from tubelet.weights.load import load_model
from tubelet.weights.save import save

from .small import SMALL, UNTAUGHT, clips, family_of, small

VARIANTS = sorted(models.variants())
FIRST_OF_FAMILY = sorted({family_of(name): name for name in reversed(VARIANTS)}.values())


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("class_names", [(), ("a", "b", "c")], ids=["bare", "classifier"])
def test_named_tensors_that_stand_still(name: str, class_names: tuple[str, ...]) -> None:
    model = small(name, class_names).eval()
    with torch.no_grad():
        first, second = model(clips(model.spec)), model(clips(model.spec))
    assert first["tokens"].shape[0] == 2 and first["tokens"].ndim == 3 and first["embedding"].shape == (2, model.width)
    assert ("logits" in first) == bool(class_names)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_clip_does_not_depend_on_its_neighbours(name: str) -> None:
    model = small(name, ("a", "b", "c")).eval()
    frames = clips(model.spec, batch=3)
    with torch.no_grad():
        alone, together = model(frames[1:2])["embedding"], model(frames)["embedding"][1:2]
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_float_frames_are_uint8_frames(name: str) -> None:
    model = small(name).eval()
    frames = clips(model.spec)
    with torch.no_grad():
        torch.testing.assert_close(model(frames.float())["embedding"], model(frames)["embedding"])


@pytest.mark.parametrize("name", VARIANTS)
def test_init_weights_sets_every_value(name: str) -> None:
    for model in (small(name), small(name, ("a", "b"))):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float("nan"))
        model.init_weights()
        assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["videomae_tiny", "vivit_base", "timesformer_base", "vjepa2_large"])
def test_narrow_blocks_say_something_at_first(name: str) -> None:
    """First values made for widths near 1,000 leave the branches of a narrow block a hundredth of what they are added to."""
    torch.manual_seed(0)
    model = models.build(name, ClipSpec(frames=16, size=32), ("a", "b"), **LADDER[name])
    added: list[float] = []
    for module in model.modules():
        if type(module).__name__ == "Block":
            module.register_forward_hook(
                lambda block, given, out: added.append(float((out - given[0]).norm() / given[0].norm()))
            )
    with torch.no_grad():
        model(clips(model.spec))
    assert len(added) >= 4 and min(added) > 0.1


@pytest.mark.parametrize("name", VARIANTS)
def test_rebuilding_and_head(name: str) -> None:
    model = small(name, ("a", "b", "c"))
    again = models.build_like(model)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert sum(p.numel() for p in model.head_parameters()) == (model.width + 1) * 3
    depths = [model.depth_of(key) for key, _ in model.named_parameters()]
    assert min(depths) == 0 and max(depths) == model.depth + 1


@pytest.mark.parametrize("name", VARIANTS)
def test_everything_trainable_learns(name: str) -> None:
    torch.manual_seed(0)
    model = small(name, ("a", "b", "c")).train()
    for parameter in model.parameters():  # what begins at zero (a head, a gate) would hold gradients back
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    logits = model(clips(model.spec))["logits"]
    nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    still = [key for key, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert sorted(still) == sorted(UNTAUGHT.get(family_of(name), ()))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_folder_gives_the_same_answers(name: str, tmp_path: Path) -> None:
    model = small(name, ("a", "b")).eval()
    save(model, tmp_path / "model")
    back = load_model(tmp_path / "model")
    assert (back.name, back.spec, back.class_names, back.options) == (model.name, model.spec, model.class_names, model.options)
    with torch.no_grad():
        assert torch.equal(back(clips(model.spec))["logits"], model(clips(model.spec))["logits"])


@pytest.mark.parametrize("name", FIRST_OF_FAMILY)
def test_export_gives_the_same_answers(name: str) -> None:
    class Logits(nn.Module):
        def __init__(self, model: Model) -> None:
            super().__init__()
            self.model = model

        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            return self.model(frames)["logits"]

    model = Logits(small(name, ("a", "b", "c")).eval())
    frames = clips(model.model.spec).float()
    model(frames)  # position tables are made at the first call, and kept
    exported = torch.export.export(model, (frames,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    other = clips(model.model.spec, batch=3, seed=1).float()
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(other), model(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FIRST_OF_FAMILY)
def test_fine_tuning_takes_it(name: str, motion_folder: Path, tmp_path: Path) -> None:
    spec, options = SMALL.get(name) or SMALL[family_of(name)]
    config = TrainConfig(
        out=str(tmp_path / "run"), objective="classify", data=DataConfig(train=(str(motion_folder),)), clip=spec,
        model=ModelConfig(name, dict(options)), optim=OptimConfig(steps=2), run=RunConfig(device="cpu", report=False, threads=1),
    )  # fmt: skip
    model = load_model(train(config))
    assert model.class_names and all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize("name", VARIANTS)
def test_its_reach_is_one_of_the_two(name: str) -> None:
    model = small(name)
    field, pairs = model.receptive_field(), model.attended_pairs()
    assert (field is not None) + (pairs is not None) == 1
    assert all(number >= 1 for number in field or [pairs])


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_no_clip_is_one_clear_line(name: str) -> None:
    """What came, what is taken, and what to set: the same of every family."""
    model = small(name).eval()
    size, own = model.spec.size, f"built for {model.spec.frames} frames of {model.spec.size}x{model.spec.size} with 3 colours"
    wrong = {
        (1, 0, 3, size, size): "got clips of 0 frames", (1, model.spec.frames, 3, 0, size): f"of {size}x0 with 3 colours",
        (model.spec.frames, 3, size, size): "for one clip frames[None]", (3, size, size): "it takes clips (batch, frames,",
    }  # fmt: skip
    for shape, words in wrong.items():
        with pytest.raises(ConfigError) as error:
            model(torch.zeros(shape, dtype=torch.uint8))
        assert words in str(error.value) and own in str(error.value) and "\n" not in str(error.value)
    grey = (1, model.spec.frames, 1, size, size)
    with pytest.raises(ConfigError, match=r"1 colours.* 3 colours.*\bclip.frames") as error:
        model(torch.zeros(grey, dtype=torch.uint8))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", VARIANTS)
def test_its_cost_is_counted(name: str) -> None:
    bare, classifier = models.cost(small(name)), models.cost(small(name, ("a", "b", "c")))
    assert 0 < bare["gmacs"] < classifier["gmacs"] and bare["params"] > 0
