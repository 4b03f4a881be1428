"""Flow of known motions, and warping against the formula."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.errors import ConfigError, MissingExtraError
from tubelet.video import flow


def moved(dx: int, dy: int, frames: int = 2, size: int = 96) -> Tensor:
    """uint8 (T,3,S,S): a smooth texture whose pixels move by (dx, dy) a frame."""
    generator = torch.Generator().manual_seed(0)
    room = size + 2 * frames * max(abs(dx), abs(dy), 1)
    picture = sum(
        F.interpolate(torch.rand(1, 3, room // step, room // step, generator=generator), size=(room, room), mode="bicubic")[0]
        for step in (3, 8)
    )
    start = frames * max(abs(dx), abs(dy), 1)
    cuts = [picture[:, start - t * dy :, start - t * dx :][:, :size, :size] for t in range(frames)]
    return (torch.stack(cuts) * 127).clamp(0, 255).byte()


@pytest.mark.parametrize("name", flow.ESTIMATORS)
@pytest.mark.parametrize("motion", [(1, 0), (0, -2), (3, -2), (5, 4)])
def test_an_integer_translation_is_recovered(name: str, motion: tuple[int, int]) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'tubelet[flow]'")
    frames = moved(*motion)
    inner = (slice(None), slice(16, -16), slice(16, -16))
    truth = torch.tensor(motion).view(2, 1, 1).float()
    forward, backward = flow.estimate(frames, name)[0], flow.estimate(frames, name, backward=True)[0]
    assert (forward - truth)[inner].norm(dim=0).mean() < 0.1
    assert (backward + truth)[inner].norm(dim=0).mean() < 0.1
    error = flow.brightness_error(frames[:1], frames[1:], forward[None])
    assert error < 0.2 * flow.brightness_error(frames[:1], frames[1:], torch.zeros(1, 2, 96, 96))


@pytest.mark.parametrize("motion", [(1, 0), (0, -2), (3, -2), (5, 4)])
def test_the_next_frame_warped_by_the_true_flow_is_the_frame(motion: tuple[int, int]) -> None:
    frames = moved(*motion)
    truth = torch.tensor(motion).view(1, 2, 1, 1).float().expand(1, 2, 96, 96)
    back, seen = flow.warp(frames[1:], truth)[0], flow.inside(truth)[0]
    assert (back - frames[0].float()).abs()[:, seen].max() < 1e-2
    assert int(seen.sum()) == (96 - abs(motion[0])) * (96 - abs(motion[1]))
    assert flow.brightness_error(frames[:1], frames[1:], truth) < 1e-3


def test_warping_against_the_formula() -> None:
    torch.manual_seed(0)
    frame, field = torch.rand(1, 3, 7, 9) * 255, torch.randn(1, 2, 7, 9) * 3
    warped = flow.warp(frame, field)[0].numpy()
    for y, x in np.ndindex(7, 9):
        px, py = np.clip(x + field[0, 0, y, x].item(), 0, 8), np.clip(y + field[0, 1, y, x].item(), 0, 6)
        left, top = min(int(px), 7), min(int(py), 5)
        a, b, corners = px - left, py - top, frame[0, :, top : top + 2, left : left + 2].numpy()
        wanted = corners @ np.array([1 - a, a]) @ np.array([1 - b, b])
        np.testing.assert_allclose(warped[:, y, x], wanted, atol=1e-2)


def test_threads_change_nothing() -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'tubelet[flow]'")
    frames, before = moved(3, 1, frames=4), torch.get_num_threads()
    one = flow.estimate(frames)
    try:
        torch.set_num_threads(3)
        assert torch.equal(flow.estimate(frames), one)
    finally:
        torch.set_num_threads(before)


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="unknown flow estimator 'diss': did you mean 'dis'"):
        flow.estimate(moved(1, 0), "diss")
    with pytest.raises(ConfigError, match="dis got 1 frame of 96x96 with 3 colours; flow needs 2 frames or more"):
        flow.estimate(moved(1, 0)[:1])
    with pytest.raises(ConfigError, match="16x16 pixels or more"):
        flow.estimate(moved(1, 0, size=12))


def test_without_opencv_the_error_has_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"needs OpenCV: pip install 'tubelet\[flow\]'"):
        flow.estimate(moved(1, 0))
