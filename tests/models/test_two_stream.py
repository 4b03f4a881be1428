"""Two streams: what each sees, how flow is stacked, and what late fusion is."""

import numpy as np
import pytest
import torch

from tubelet import models
from tubelet.errors import ConfigError
from tubelet.models import two_stream
from tubelet.records import ClipSpec

from .small import SPEC, clips, randomise, small

CLASSES = ("a", "b", "c")


def flow_of(spec: ClipSpec, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, spec.frames - 1, 2, spec.size, spec.size, generator=torch.Generator().manual_seed(1)) * 15


def test_the_temporal_stream_takes_two_channels_a_field() -> None:
    rows = {row["name"]: row for row in models.list_models(["two_stream"])}
    assert {row["frames"] for row in rows.values()} == {11} and {row["stride_frames"] for row in rows.values()} == {1}
    with torch.device("meta"):
        model = models.build("two_stream_resnet18", models.clip_of("two_stream_resnet18"))
    assert model.temporal.conv1.weight.shape == (64, 20, 7, 7)
    # ResNet-18 takes 1.814 GMAC a picture; 17 more channels enter the temporal stream's 7x7 convolution. OpenCV counts nothing.
    more = 17 * 49 * 64 * 112**2 / 1e9
    assert rows["two_stream_resnet18"]["gmacs"] == pytest.approx(12 * 1.814 + more, rel=2e-3)


def test_flow_is_cut_centred_scaled_and_interleaved() -> None:
    flow = flow_of(SPEC)
    wanted = np.empty((2, 6, 32, 32), np.float32)
    for clip, field, axis in np.ndindex(2, 3, 2):
        cut = np.clip(flow[clip, field, axis].numpy(), -20, 20)
        wanted[clip, 2 * field + axis] = (cut - cut.mean()) / 20
    np.testing.assert_allclose(two_stream.stack_flow(flow).numpy(), wanted, atol=1e-6)


def test_late_fusion_is_the_mean_of_both_streams_probabilities() -> None:
    both = small("two_stream_resnet18", CLASSES).eval()
    randomise(both)
    frames, flow = clips(SPEC), flow_of(SPEC)
    answers = []
    for number, name in enumerate(("spatial", "temporal")):
        one = small("two_stream_resnet18", CLASSES, streams=name).eval()
        state = {key: value for key, value in both.state_dict().items() if key.startswith(f"{name}.")}
        half = both.head.weight.chunk(2, dim=1)[number]
        one.load_state_dict({**state, "head.weight": half, "head.bias": both.head.bias})
        with torch.no_grad():
            answers.append(one(frames, flow)["logits"].softmax(dim=1))
    with torch.no_grad():
        out = both(frames, flow)
    torch.testing.assert_close(out["logits"].softmax(dim=1), (answers[0] + answers[1]) / 2)
    torch.testing.assert_close(out["tokens"].mean(dim=1), out["embedding"])


def test_what_each_stream_sees() -> None:
    frames, flow = clips(SPEC), flow_of(SPEC)
    spatial = small("two_stream_resnet18", CLASSES, streams="spatial").eval()
    temporal = small("two_stream_resnet18", CLASSES, streams="temporal").eval()
    with torch.no_grad():
        shuffled = spatial(frames[:, [2, 0, 3, 1]])["logits"]
        torch.testing.assert_close(spatial(frames)["logits"], shuffled)
        each = torch.stack([spatial(frames[:, [t]])["logits"].softmax(1) for t in range(4)]).mean(dim=0)
        torch.testing.assert_close(spatial(frames)["logits"].softmax(1), each)
        assert torch.equal(temporal(frames, flow)["logits"], temporal(255 - frames, flow)["logits"])
    assert spatial.receptive_field()[0] == 1 and temporal.receptive_field()[0] == 4


def test_training_looks_at_one_frame() -> None:
    model = small("two_stream_resnet18", CLASSES, streams="spatial").train()
    assert model(clips(SPEC))["tokens"].shape == (2, 1, model.width)


def test_opencv_and_raft_estimate_the_flow() -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'tubelet[flow]'")
    from tubelet.video.flow import estimate

    frames = clips(SPEC)
    for name in ("dis", "farneback"):
        model = small("two_stream_resnet18", CLASSES, estimator=name).eval()
        wanted = torch.stack([estimate(clip, name) for clip in frames])
        assert torch.equal(model.flow(frames), wanted)
        with torch.no_grad():
            assert torch.equal(model(frames)["logits"], model(frames, wanted)["logits"])


def test_raft_is_part_of_the_model_and_does_not_train() -> None:
    model = small("two_stream_resnet18", CLASSES, estimator="raft_large").train()
    before = {key: value.clone() for key, value in model.state_dict().items() if key.startswith("raft.")}
    assert before and not model.raft.training and model.raft.updates == 12
    model.raft.updates = 2
    model(clips(SPEC))["logits"].logsumexp(1).sum().backward()
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert all(parameter.grad is None for parameter in model.raft.parameters())
    assert any(parameter.grad is not None for parameter in model.temporal.parameters())


def test_what_it_cannot_take() -> None:
    with pytest.raises(
        ConfigError, match=r"got clips of 5 frames of 32x32 .* takes 3 colours and 4 frames, 6 channels .* clip.frames"
    ):
        small("two_stream_resnet18")(clips(ClipSpec(frames=5, size=32)))
    with pytest.raises(ConfigError, match="there is no flow in clips of 1 frame: set clip.frames to 2 or more, or streams"):
        models.build("two_stream_resnet18", ClipSpec(frames=1, size=32))
    with pytest.raises(ConfigError, match="unknown flow estimator 'diss': did you mean 'dis'"):
        small("two_stream_resnet18", estimator="diss")
    with pytest.raises(ConfigError, match="unknown streams 'all'"):
        small("two_stream_resnet18", streams="all")
    with pytest.raises(ConfigError, match="layers is 19, a ResNet has 18, 34, 50"):
        small("two_stream_resnet18", layers=19)
