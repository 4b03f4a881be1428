"""`tubelet flow`: how everything in a video moves, as numbers and as a video of colours."""

from tubelet.cli._print import emit_json, tell


def command(
    video: str,
    *,
    out: str = "flow",
    model: str = "dis",
    weights: str = "",
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    size: int = 256,
    full_pixels: float | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Write the optical flow of a video, forward and backward, as flow.npz and flow.mp4.

    The video shows each frame, its flow to the next frame and the next frame's flow back; legend.png says which colour is which
    direction. The brightness error is what flow leaves unexplained, in steps of 0 to 255, beside that without any flow.

    Parameters
    ----------
    video
        The video file.
    out
        The folder to write: flow.npz (flow_forward and flow_backward, float16 in pixels of the scaled frames, x then y; seconds of
        the frames; the settings), flow.mp4 and legend.png.
    model
        "dis" or "farneback" (OpenCV: pip install 'tubelet[flow]'), or "raft_small" or "raft_large" with their weights.
    weights
        torchvision's weights of raft_small or raft_large, a .pth or .safetensors file.
    start_seconds
        Where to begin. Default: the beginning of the video.
    end_seconds
        Where to end. Default: the end of the video.
    size
        Scale frames down to this short side, in pixels.
    full_pixels
        Flow of this length has a full colour. Default: what 99 % of the pixels stay below, at least 1.
    device
        "auto", "cpu" or "cuda"; only raft uses it.
    json
        Print a JSON object instead.
    """
    from tubelet.flow import estimator, flow_of_video
    from tubelet.train.device import choose_device

    estimate = estimator(model, weights, choose_device(device))
    found = flow_of_video(video, out, estimate, model, start_seconds, end_seconds, size, full_pixels)
    if json:
        emit_json(found.to_dict())
        return
    tell(f"{video}  ({found.seconds_taken:.2f} s)")
    tell(
        f"  {found.frames} frames of {found.width}x{found.height} (the video is {found.source_width}x{found.source_height}), "
        f"seconds {found.start_seconds:.2f}-{found.end_seconds:.2f}"
    )
    tell(f"  moves {found.mean_pixels:.2f} pixels a frame; full colour at {found.full_pixels:.2f}")
    tell(
        f"  brightness error {found.brightness_error_forward:.2f} forward, {found.brightness_error_backward:.2f} backward, "
        f"{found.brightness_error_still:.2f} without flow"
    )
    tell(f"  {found.out}: flow.npz, flow.mp4, legend.png")
