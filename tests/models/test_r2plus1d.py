"""R(2+1)D against torchvision's published layout and counts, and against its forward pass written with torch's own operations."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet import models
from tubelet.errors import CheckpointError, ConfigError
from tubelet.models import r2plus1d
from tubelet.records import ClipSpec
from tubelet.video.normalize import normalize

from .small import clips, randomise, small

CLASSES = [str(i) for i in range(400)]


def meta(name: str, spec: ClipSpec | None = None, **options: object) -> r2plus1d.R2Plus1D:
    with torch.device("meta"):
        model = models.build(name, spec or models.clip_of(name), CLASSES, **options)
    assert isinstance(model, r2plus1d.R2Plus1D)
    return model


def test_published_sizes() -> None:
    """torchvision's r2plus1d_18: 31,505,325 parameters, 40.52 G at 16x112x112. 34 layers: 63.7 M, 152 G at 32x112x112."""
    eighteen, thirty_four = models.cost(meta("r2plus1d_18")), models.cost(meta("r2plus1d_34"))
    assert eighteen["params"] == 31_505_325
    assert round(eighteen["gmacs"], 2) == 40.52
    assert round(thirty_four["params"] / 1e6, 1) == 63.7 and round(thirty_four["gmacs"]) == 152


def test_the_middle_width_keeps_the_weights_of_a_3d_convolution() -> None:
    pairs = [(64, 64), (64, 128), (128, 256), (256, 512)]
    assert [r2plus1d.middle_width(*pair) for pair in pairs] == [144, 230, 460, 921]
    assert sum(p.numel() for p in r2plus1d.Conv2Plus1D(64, 64, 144, 1).parameters() if p.ndim == 5) == 27 * 64 * 64 == 110_592
    middles = {name: p.shape[0] for name, p in meta("r2plus1d_18").named_parameters() if name.endswith("conv2.0.0.weight")}
    assert [middles[f"trunk.layer{stage}.0.conv2.0.0.weight"] for stage in (1, 2, 3, 4)] == [144, 230, 460, 921]
    own = meta("r2plus1d_18", middle="convolution")
    assert dict(own.named_parameters())["trunk.layer4.0.conv2.0.0.weight"].shape[0] == 1152


# torchvision's file, a weight of every kind: name, shape.
TORCHVISION = {
    "stem.0.weight": (45, 3, 1, 7, 7), "stem.1.running_mean": (45,), "stem.3.weight": (64, 45, 3, 1, 1), "stem.4.bias": (64,),
    "layer1.0.conv1.0.0.weight": (144, 64, 1, 3, 3), "layer1.0.conv1.0.1.weight": (144,),
    "layer1.0.conv1.0.3.weight": (64, 144, 3, 1, 1), "layer1.0.conv1.1.weight": (64,),
    "layer2.0.conv1.0.0.weight": (230, 64, 1, 3, 3), "layer2.0.conv2.0.3.weight": (128, 230, 3, 1, 1),
    "layer2.0.downsample.0.weight": (128, 64, 1, 1, 1), "layer2.0.downsample.1.num_batches_tracked": (),
    "layer2.1.conv2.0.0.weight": (288, 128, 1, 3, 3), "layer4.1.conv2.1.running_var": (512,),
    "fc.weight": (400, 512), "fc.bias": (400,),
}  # fmt: skip


def test_keys_and_shapes_are_torchvisions() -> None:
    state = r2plus1d.to_torchvision(meta("r2plus1d_18").state_dict())
    assert {key: tuple(state[key].shape) for key in TORCHVISION} == TORCHVISION
    # stem 2 convolutions + 2 norms of 5; 8 blocks of 4 convolutions + 4 norms; 3 shortcuts; head
    assert len(state) == (2 + 2 * 5) + 8 * (4 + 4 * 5) + 3 * (1 + 5) + 2


def test_there_and_back_bit_by_bit() -> None:
    model = small("r2plus1d_18", ("a", "b"))
    assert isinstance(model, r2plus1d.R2Plus1D)
    randomise(model)
    theirs = r2plus1d.to_torchvision(model.state_dict())
    back = r2plus1d.from_torchvision(theirs, model)
    assert list(back) == list(model.state_dict())
    assert all(torch.equal(back[key], value) for key, value in model.state_dict().items())
    older = {key: value for key, value in theirs.items() if not key.endswith("num_batches_tracked")}
    assert back.keys() == r2plus1d.from_torchvision(older, model).keys()


def test_every_weight_that_does_not_fit_is_named() -> None:
    model = small("r2plus1d_18", ("a", "b"))
    assert isinstance(model, r2plus1d.R2Plus1D)
    theirs = r2plus1d.to_torchvision(model.state_dict())
    del theirs["layer1.0.conv1.0.0.weight"], theirs["stem.1.bias"]
    theirs |= {"layer9.weight": torch.zeros(1), "fc.weight": torch.zeros(7, 64)}
    with pytest.raises(CheckpointError) as caught:
        r2plus1d.from_torchvision(theirs, model)
    for part in ("left over layer9.weight", "missing layer1.0.conv1.0.0.weight", "missing stem.1.bias",
                 "fc.weight is (7, 64), wanted (2, 64)"):  # fmt: skip
        assert part in str(caught.value)


def reference(state: dict[str, Tensor], x: Tensor, counts: tuple[int, ...]) -> Tensor:
    """The paper's forward pass from a state dict in torchvision's keys, with torch's functions alone: (B,3,T,H,W) -> map."""

    def norm(name: str, x: Tensor) -> Tensor:
        return F.batch_norm(x, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    def split(name: str, x: Tensor, stride: int) -> Tensor:
        x = F.conv3d(x, state[f"{name}.0.weight"], stride=(1, stride, stride), padding=(0, 1, 1))
        return F.conv3d(F.relu(norm(f"{name}.1", x)), state[f"{name}.3.weight"], stride=(stride, 1, 1), padding=(1, 0, 0))

    x = F.relu(norm("stem.1", F.conv3d(x, state["stem.0.weight"], stride=(1, 2, 2), padding=(0, 3, 3))))
    x = F.relu(norm("stem.4", F.conv3d(x, state["stem.3.weight"], padding=(1, 0, 0))))
    for stage, count in enumerate(counts, start=1):
        for block in range(count):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = F.relu(norm(f"{name}.conv1.1", split(f"{name}.conv1.0", x, stride)))
            y = norm(f"{name}.conv2.1", split(f"{name}.conv2.0", y, 1))
            if stride == 2:
                x = norm(f"{name}.downsample.1", F.conv3d(x, state[f"{name}.downsample.0.weight"], stride=2))
            x = F.relu(x + y)
    return x


@pytest.mark.parametrize(("name", "counts"), [("r2plus1d_18", (2, 2, 2, 2)), ("r2plus1d_34", (3, 4, 6, 3))])
def test_forward_is_the_papers(name: str, counts: tuple[int, ...]) -> None:
    model = small(name, ("a", "b", "c")).eval()
    randomise(model)
    state = r2plus1d.to_torchvision(model.state_dict())
    frames = clips(model.spec)
    with torch.no_grad():
        out = model(frames)
        x = normalize(frames, model.spec.mean, model.spec.std, colour_dim=2).transpose(1, 2)
        wanted = reference(state, x, counts).mean(dim=(2, 3, 4))
    assert wanted.abs().max() > 0
    torch.testing.assert_close(out["embedding"], wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out["logits"], F.linear(wanted, state["fc.weight"], state["fc.bias"]), rtol=1e-4, atol=1e-5)


def test_shapes_of_the_papers_clips() -> None:
    """Table 1: time is divided by 8, places by 16."""
    clip = torch.zeros(1, 16, 3, 112, 112, dtype=torch.uint8, device="meta")
    assert meta("r2plus1d_18")(clip)["tokens"].shape == (1, 2 * 7 * 7, 512)


def test_bad_clips_and_options_are_named() -> None:
    with pytest.raises(
        ConfigError, match="r2plus1d_18 got clips of 3 frames of 32x32 with 4 colours; it takes 3 colours, 1 or more"
    ):
        small("r2plus1d_18")(torch.zeros(1, 3, 4, 32, 32))
    with pytest.raises(ConfigError, match=r"unknown layers '50' \(known: 18, 34\)"):
        small("r2plus1d_18", layers=50)
    with pytest.raises(ConfigError, match="unknown middle 'convolutions': did you mean 'convolution'"):
        small("r2plus1d_18", middle="convolutions")
