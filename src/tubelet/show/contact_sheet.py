"""Videos at a glance: one row of frames per video with a caption, as PNG bytes."""

from collections.abc import Sequence

from torch import Tensor

from tubelet.show._sheet import Row, pick, sheet, to_png


def contact_sheet(videos: Sequence[tuple[Tensor, str, str]], shown: int = 8, least_pixels: int = 96) -> bytes:
    """PNG of `videos` (frames uint8 (T,C,H,W), caption, remark): `shown` frames of each, first and last included."""
    rows = [Row(frames[pick(len(frames), shown)], caption, remark) for frames, caption, remark in videos]
    return to_png(sheet(rows, least_pixels=least_pixels))
