"""RAFT against its published counts, brute-force formulas, and itself written as plain functions of torchvision's weights."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tubelet import models
from tubelet.errors import CheckpointError, ConfigError
from tubelet.models import raft
from tubelet.records import ClipSpec

from .small import clips, randomise

SPEC = ClipSpec(frames=2, size=128, mean=(0.5,) * 3, std=(0.5,) * 3)
# torchvision's pages of the two models: parameters, and GMAC for two frames of 512x512 with every flow at full size
PUBLISHED = {"raft_large": (5_257_536, 211.0), "raft_small": (990_162, 47.7)}


@pytest.mark.parametrize("name", raft.VARIANTS)
def test_published_parameters_and_gmacs(name: str) -> None:
    with torch.device("meta"):
        model = models.build(name, raft.CLIPS[name])
        frames = torch.zeros(1, 2, 3, 512, 512, dtype=torch.uint8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        assert isinstance(model, raft.RAFT)
        model.flows(frames)
    params = sum(p.numel() for p in model.parameters())
    assert (params, round(counter.get_total_flops() / 2e9, 1)) == PUBLISHED[name]


def keys_of_torchvision(large: bool) -> set[str]:
    convs = ["update_block.motion_encoder." + name for name in ("convcorr1.0", "convflow1.0", "convflow2.0", "conv.0")]
    convs += [f"update_block.recurrent_block.convgru1.conv{gate}" for gate in "zrq"]
    convs += ["update_block.flow_head.conv1", "update_block.flow_head.conv2"]
    normed = ["convnormrelu.", "layer2.0.downsample.", "layer3.0.downsample."]
    normed += [f"layer{i}.{j}.convnormrelu{k}." for i, j, k in product((1, 2, 3), (0, 1), (1, 2) if large else (1, 2, 3))]
    convs += [f"{side}_encoder.{name}0" for side in ("feature", "context") for name in normed]
    convs += ["feature_encoder.conv", "context_encoder.conv"]
    if large:
        convs += [f"update_block.recurrent_block.convgru2.conv{gate}" for gate in "zrq"]
        convs += ["update_block.motion_encoder.convcorr2.0", "mask_predictor.convrelu.0", "mask_predictor.conv"]
    keys = {f"{name}.{kind}" for name in convs for kind in ("weight", "bias")}
    values = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return keys | {f"context_encoder.{name}1.{value}" for name in normed for value in values if large}


@pytest.mark.parametrize("name", raft.VARIANTS)
def test_every_key_is_torchvisions(name: str) -> None:
    with torch.device("meta"):
        state = models.build(name, SPEC).state_dict()
    assert set(state) == keys_of_torchvision(name == "raft_large")
    assert raft.from_torchvision(state) == state
    wrong = {key: value for key, value in state.items() if "flow_head.conv1" not in key}
    wrong |= {"fnet.conv1.weight": torch.zeros(1), "feature_encoder.conv.bias": torch.zeros(3)}
    with pytest.raises(CheckpointError) as error:
        raft.from_torchvision(wrong)
    for said in (
        f"not torchvision's {name}",
        "missing update_block.flow_head.conv1.weight",
        "missing update_block.flow_head.conv1.bias",
        "left over fnet.conv1.weight",
        "feature_encoder.conv.bias is (3,), wanted (",
    ):
        assert said in str(error.value)


def reference(state: dict[str, Tensor], frames: Tensor, large: bool, updates: int) -> list[Tensor]:
    """Flows of two frames (1,2,3,H,W), written from the paper over torchvision's weights, H and W multiples of 8 from 128 on."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], stride, (weight.shape[2] // 2, weight.shape[3] // 2))

    def encode(side: str, x: Tensor) -> Tensor:
        def norm(name: str, x: Tensor) -> Tensor:
            if side == "feature_encoder":
                return (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
            if not large:
                return x
            mean, var, weight, bias = (state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
            return F.batch_norm(x, mean, var, weight, bias)

        def unit(name: str, x: Tensor, stride: int = 1) -> Tensor:
            return norm(f"{name}.1", conv(f"{name}.0", x, stride))

        x = unit(f"{side}.convnormrelu", x, 2).relu()
        for layer, block in product((1, 2, 3), (0, 1)):
            name, stride = f"{side}.layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            strides = (stride, 1) if large else (1, stride, 1)
            y = x
            for number, step in enumerate(strides, start=1):
                y = unit(f"{name}.convnormrelu{number}", y, step).relu()
            x = ((unit(f"{name}.downsample", x, stride) if stride > 1 else x) + y).relu()
        return conv(f"{side}.conv", x)

    first, second = frames[:, 0].float() / 127.5 - 1, frames[:, 1].float() / 127.5 - 1
    one, two, context = encode("feature_encoder", first), encode("feature_encoder", second), encode("context_encoder", first)
    _, c, h, w = one.shape
    volumes = [torch.einsum("bchw,bcij->bhwij", one, two).reshape(h * w, 1, h, w) / c**0.5]
    for _ in range(3):
        volumes.append(F.avg_pool2d(volumes[-1], 2, 2))
    radius, size = (4, 128) if large else (3, 96)
    hidden, context = context[:, :size].tanh(), context[:, size:].relu()
    y, x = torch.meshgrid(torch.arange(h).float(), torch.arange(w).float(), indexing="ij")
    place = start = torch.stack([x, y])[None]
    reach = torch.linspace(-radius, radius, 2 * radius + 1)
    window = torch.stack(torch.meshgrid(reach, reach, indexing="ij"), dim=-1)
    flows = []
    for _ in range(updates):
        seen = []
        for level, volume in enumerate(volumes):
            at = place.permute(0, 2, 3, 1).reshape(h * w, 1, 1, 2) / 2**level + window
            grid = 2 * at / torch.tensor([volume.shape[3] - 1, volume.shape[2] - 1]) - 1
            seen.append(F.grid_sample(volume, grid, align_corners=True).view(1, h, w, -1))
        correlation = torch.cat(seen, dim=-1).permute(0, 3, 1, 2)
        name = "update_block.motion_encoder"
        correlation = conv(f"{name}.convcorr1.0", correlation).relu()
        if large:
            correlation = conv(f"{name}.convcorr2.0", correlation).relu()
        flow = conv(f"{name}.convflow2.0", conv(f"{name}.convflow1.0", place - start).relu()).relu()
        motion = torch.cat([conv(f"{name}.conv.0", torch.cat([correlation, flow], 1)).relu(), place - start], 1)
        for gru in ("convgru1", "convgru2") if large else ("convgru1",):
            name = f"update_block.recurrent_block.{gru}"
            z, r = (conv(f"{name}.{gate}", torch.cat([hidden, context, motion], 1)).sigmoid() for gate in ("convz", "convr"))
            q = conv(f"{name}.convq", torch.cat([r * hidden, context, motion], 1)).tanh()
            hidden = hidden + z * (q - hidden)
        head = conv("update_block.flow_head.conv1", hidden).relu()
        place = place + conv("update_block.flow_head.conv2", head)
        if large:
            weights = 0.25 * conv("mask_predictor.conv", conv("mask_predictor.convrelu.0", hidden).relu())
            flows.append(brute_force_upsampling(place - start, weights))
        else:
            flows.append(8 * F.interpolate(place - start, size=(8 * h, 8 * w), mode="bilinear", align_corners=True))
    return flows


def brute_force_upsampling(flow: Tensor, weights: Tensor) -> Tensor:
    """Every pixel's own sum over the 3x3 cells round it."""
    _, _, h, w = flow.shape
    shares = weights.view(9, 8, 8, h, w).softmax(dim=0)
    padded, out = F.pad(8 * flow[0], (1, 1, 1, 1)), torch.zeros(2, 8 * h, 8 * w)
    for cell, row, column in product(range(9), range(8), range(8)):
        dy, dx = divmod(cell, 3)
        out[:, row::8, column::8] += shares[cell, row, column] * padded[:, dy : dy + h, dx : dx + w]
    return out[None]


@pytest.mark.parametrize("name", raft.VARIANTS)
def test_it_is_the_papers_network_over_torchvisions_weights(name: str) -> None:
    model = models.build(name, SPEC, updates=2).eval()
    assert isinstance(model, raft.RAFT)
    randomise(model, 0.03)
    frames = clips(SPEC, batch=1)
    with torch.no_grad():
        ours, wanted = model.flows(frames), reference(model.state_dict(), frames, name == "raft_large", updates=2)
        assert len(ours) == 2 and torch.equal(model(frames)["flow"], ours[-1])
    assert wanted[-1].std() > 0.01
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one[0], other, rtol=1e-3, atol=1e-4)


def test_lookup_by_brute_force() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 5, 8, 9), torch.randn(2, 5, 8, 9)
    places = torch.rand(2, 2, 8, 9) * 12 - 2
    found = raft.look_up(raft.correlate(first, second), places, radius=1).numpy()
    volume = np.einsum("bchw,bcij->bhwij", first.numpy(), second.numpy()) / np.sqrt(5)
    for b, y, x in ((0, 0, 0), (1, 7, 8), (0, 3, 5), (1, 2, 2)):
        values, maps = [], volume[b, y, x]
        for level in range(4):
            for dx, dy in product((-1, 0, 1), (-1, 0, 1)):
                px, py = places[b, 0, y, x].item() / 2**level + dx, places[b, 1, y, x].item() / 2**level + dy
                value = 0.0
                for row, column in product(
                    (int(np.floor(py)), int(np.floor(py)) + 1), (int(np.floor(px)), int(np.floor(px)) + 1)
                ):
                    if 0 <= row < maps.shape[0] and 0 <= column < maps.shape[1]:
                        value += maps[row, column] * (1 - abs(py - row)) * (1 - abs(px - column))
                values.append(value)
            h, w = maps.shape[0] // 2, maps.shape[1] // 2
            maps = maps[: 2 * h, : 2 * w].reshape(h, 2, w, 2).mean(axis=(1, 3))
        np.testing.assert_allclose(found[b, :, y, x], values, atol=1e-5)


def test_upsampling_by_brute_force() -> None:
    torch.manual_seed(0)
    flow, weights = torch.randn(1, 2, 3, 4), torch.randn(1, 576, 3, 4)
    torch.testing.assert_close(raft.upsample_convex(flow, weights), brute_force_upsampling(flow, weights))


def test_pairs_of_a_clip_are_estimated_alone_and_any_size_is_taken() -> None:
    model = models.build("raft_small", SPEC, updates=2).eval()
    frames = clips(ClipSpec(frames=3, size=72), batch=2)[..., :45, :]
    with torch.no_grad():
        flow = model(frames)["flow"]
        assert flow.shape == (2, 2, 2, 45, 72)
        torch.testing.assert_close(flow[1:, 1:], model(frames[1:, 1:])["flow"], rtol=1e-4, atol=1e-4)


def test_what_it_cannot_take() -> None:
    with pytest.raises(ConfigError, match="raft_small got clips of 1 frame with 3 colours; flow needs .* 2 frames or more"):
        models.build("raft_small", ClipSpec(frames=1))
    with pytest.raises(ConfigError, match="updates is 0, the flow needs 1 or more"):
        models.build("raft_small", SPEC, updates=0)
    with pytest.raises(ConfigError, match="with 2 colours"):
        models.build("raft_small", SPEC)(clips(SPEC)[:, :, :2])
