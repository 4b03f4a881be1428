"""VideoMAE against tensors of the reference implementation (../shared/golden, beside the repository)."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from tubelet.models import videomae
from tubelet.objectives import masked
from tubelet.records import ClipSpec

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the golden tensors (../shared/golden) are not beside this checkout"
)


def read(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """(state dict in the original layout, the other tensors, the sizes) of one golden file."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        sizes = file.metadata()
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    return state, {key: value for key, value in tensors.items() if not key.startswith("state.")}, sizes


def close(ours: Tensor, theirs: Tensor, relative: float) -> None:
    """Largest difference below `relative` times the largest value."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= relative * theirs.abs().max()


def pretraining_model(sizes: dict[str, str]) -> videomae.VideoMAE:
    spec = ClipSpec(frames=int(sizes["frames"]), size=int(sizes["image_size"]))
    return videomae.build(
        "videomae_tiny", spec, width=int(sizes["embed_dim"]), depth=int(sizes["depth"]), heads=int(sizes["heads"]),
        decoder_width=int(sizes["decoder_dim"]), decoder_depth=int(sizes["decoder_depth"]),
        decoder_heads=int(sizes["decoder_heads"]), patch=int(sizes["patch"]), tubelet=int(sizes["tubelet"]),
    )  # fmt: skip


def original_gradients(model: videomae.VideoMAE) -> dict[str, Tensor]:
    """The model's gradients under the original's keys and layouts."""
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return videomae.to_original(grads, model.tubelet)


@needs_golden
@pytest.mark.parametrize("name", ["videomae_pretrain_tube90", "videomae_pretrain_tube75"])
def test_pretraining_agrees_with_the_reference(name: str) -> None:
    state, golden, sizes = read(name)
    model = pretraining_model(sizes)
    model.load_state_dict(videomae.from_original(state))
    frames = golden["video_u8"].permute(0, 1, 4, 2, 3)  # (B,T,H,W,C) -> (B,T,C,H,W)
    mask = golden["mask"].bool()

    out = model(frames, mask=mask)
    close(out["tokens"], golden["encoded"], 1e-5)
    close(out["prediction"], golden["prediction"], 1e-5)

    target = masked.target(frames, masked.places(mask).predicted, model.tubelet, normalize=True)
    close(target, golden["target"], 1e-5)
    loss = masked.distances(out["prediction"], target, masked.MaskedConfig()).mean()
    close(loss.view(1), golden["loss"], 1e-5)
    loss.backward()
    for key, value in original_gradients(model).items():
        if f"grad.{key}" in golden:
            close(value, golden[f"grad.{key}"], 1e-4)
    assert sum(f"grad.{key}" in golden for key in original_gradients(model)) == 6


@needs_golden
def test_classifier_agrees_with_the_reference() -> None:
    state, golden, sizes = read("videomae_classifier")
    spec = ClipSpec(frames=int(sizes["frames"]), size=int(sizes["image_size"]))
    model = videomae.build(
        "videomae_tiny", spec, [str(i) for i in range(int(sizes["classes"]))], width=int(sizes["embed_dim"]),
        depth=int(sizes["depth"]), heads=int(sizes["heads"]), patch=int(sizes["patch"]), tubelet=int(sizes["tubelet"]),
    )  # fmt: skip
    model.load_state_dict(videomae.from_original(state))
    out = model(golden["video_u8"].permute(0, 1, 4, 2, 3))
    close(out["embedding"], golden["features"], 1e-5)
    close(out["logits"], golden["logits"], 1e-5)
    loss = torch.nn.functional.cross_entropy(out["logits"], golden["labels"])
    close(loss.view(1), golden["loss"], 1e-5)
    loss.backward()
    checked = [key for key in original_gradients(model) if f"grad.{key}" in golden]
    assert len(checked) == 3
    for key in checked:
        close(original_gradients(model)[key], golden[f"grad.{key}"], 1e-4)


@needs_golden
@pytest.mark.parametrize("name", ["videomae_pretrain_tube90", "videomae_classifier"])
def test_original_layout_round_trip_is_bit_identical(name: str) -> None:
    state, _, sizes = read(name)
    tubelet = (int(sizes["tubelet"]), int(sizes["patch"]), int(sizes["patch"]))
    back = videomae.to_original(videomae.from_original(state), tubelet)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
