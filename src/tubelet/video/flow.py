"""Optical flow without a trained network: where each pixel of a frame is in the next one, by OpenCV (extra `[flow]`).

A flow belongs to the pixels of its first frame: first(x, y) = second(x + flow[0], y + flow[1]), in pixels, y downwards.

T frames, H height, W width.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.errors import ConfigError, MissingExtraError
from tubelet.find import choose

LEAST_PIXELS = 16  # of the shorter side; below, neither has a patch to compare


def estimate(frames: Tensor, estimator: str = "dis", backward: bool = False) -> Tensor:
    """float32 (T-1,2,H,W): the flow of each of the frames uint8 (T,3,H,W) to the next one; backward, of the next one to it.

    estimator: "dis" (Kroeger et al. 2016, arXiv:1603.03590) or "farneback" (Farnebäck 2003). The same frames give the same flow
    on any number of threads. ConfigError for an unknown estimator, one frame, or frames smaller than LEAST_PIXELS;
    MissingExtraError without OpenCV.
    """
    make = ESTIMATORS[choose(estimator, ESTIMATORS, "flow estimator")]
    t, c, height, width = frames.shape
    if t < 2 or c != 3 or min(height, width) < LEAST_PIXELS:
        raise ConfigError(
            f"{estimator} got {t} frame{'s' * (t != 1)} of {width}x{height} with {c} colours; flow needs 2 frames or more of 3 "
            f"colours and {LEAST_PIXELS}x{LEAST_PIXELS} pixels or more"
        )
    cv2 = _opencv()
    # DIS cuts a frame into a strip per thread, and its answer depends on them. One thread a pair of frames is as fast.
    cv2.setNumThreads(1)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in np.ascontiguousarray(frames.cpu().permute(0, 2, 3, 1))]
    pairs = [(b, a) if backward else (a, b) for a, b in pairwise(grey)]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        found = list(threads.map(make(cv2), pairs))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()


def _dis(cv2: ModuleType) -> Callable[[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    def flow(pair: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # has a memory: not shared by threads
        answer: np.ndarray = search.calc(*pair, None)
        return answer

    return flow


def _farneback(cv2: ModuleType) -> Callable[[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    def flow(pair: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        # Half the size up to four times, windows of 15 pixels, 3 rounds, polynomials over 5 pixels with a Gaussian of 1.2.
        answer: np.ndarray = cv2.calcOpticalFlowFarneback(*pair, None, 0.5, 4, 15, 3, 5, 1.2, 0)
        return answer

    return flow


ESTIMATORS = {"dis": _dis, "farneback": _farneback}


def _opencv() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise MissingExtraError(
            "optical flow by dis and farneback needs OpenCV: pip install 'tubelet[flow]' (raft with its weights does not)"
        ) from error
    module: ModuleType = cv2
    return module


def warp(second: Tensor, flow: Tensor) -> Tensor:
    """float32 (T,C,H,W): the frames (T,C,H,W) seen where the flow (T,2,H,W) leads, which with the right flow are the frames it
    starts from. Bilinear; outside of the frame its edge is seen (`inside` tells where)."""
    height, width = flow.shape[-2:]
    size = torch.tensor([width, height], device=flow.device)
    grid = (2 * _places(flow).permute(0, 2, 3, 1) + 1) / size - 1
    return F.grid_sample(second.float(), grid, padding_mode="border", align_corners=False)


def inside(flow: Tensor) -> Tensor:
    """bool (T,H,W): whether the flow (T,2,H,W) leads to a place within the frame."""
    height, width = flow.shape[-2:]
    x, y = _places(flow).unbind(dim=1)
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def _places(flow: Tensor) -> Tensor:
    """x and y (T,2,H,W) to which the flow of each pixel leads."""
    rows, columns = (torch.arange(n, device=flow.device, dtype=torch.float32) for n in flow.shape[-2:])
    return flow + torch.stack(torch.meshgrid(columns, rows, indexing="xy"))


def brightness_error(first: Tensor, second: Tensor, flow: Tensor) -> Tensor:
    """float32 (T,): mean |first - warp(second, flow)| over colours and over the pixels that do not leave the frame, in steps of
    0..255. Frames (T,C,H,W), flow (T,2,H,W); NaN where every pixel leaves. It is what the assumption that brightness is constant
    leaves unexplained (Horn and Schunck 1981)."""
    seen = inside(flow)
    error = (first.float() - warp(second, flow)).abs().mean(dim=1)
    return (error * seen).sum(dim=(1, 2)) / seen.sum(dim=(1, 2))
