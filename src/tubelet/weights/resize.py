"""Weights made for tubelets of one size serve tubelets of another: more or fewer frames, larger or smaller patches.

The larger of two kernels answers a clip that was stretched, by linear interpolation, as the smaller one answers the clip itself:
of a larger kernel the smaller one follows exactly; of a smaller one, the larger is the one of least norm that does so (FlexiViT's
pseudo-inverse, Beyer et al. 2022, arXiv:2212.08013, in time too). So a constant clip gets the same answer at every size, one frame
made two halves its kernel as "inflate" does for image models, and there and back the weights are as before. Interpolating the
kernel itself would keep none of this: its answers grow with the number of pixels.
"""

import math

from torch import Tensor

from tubelet.models._model import Model
from tubelet.models._tokens import Triple, resize_kernel, resize_pixels


def fit_tubelets(state: dict[str, Tensor], trained: Triple | None, model: Model) -> tuple[dict[str, Tensor], str]:
    """(the state dict with its kernels, and what a decoder paints with, for the tubelets of `model`; what is to be said of it, ""
    where nothing had to change).

    trained: the size of the state dict's own tubelets, None where there are none. The families are those whose `embed` is a Linear
    over tubelets; what does not fit otherwise is left for `fill` to name.
    """
    tubelet: Triple | None = getattr(model, "tubelet", None)
    kernel = state.get("embed.weight")
    if trained is None or tubelet is None or trained == tubelet or kernel is None or kernel.ndim != 2:
        return state, ""
    if kernel.shape[1] != 3 * math.prod(trained):
        return state, ""
    made = {"embed.weight": resize_kernel(kernel, trained, tubelet)}
    made |= {
        key: resize_pixels(state[key], trained, tubelet) for key in ("decoder.head.weight", "decoder.head.bias") if key in state
    }
    theirs, ours = ("x".join(map(str, size)) for size in (trained, tubelet))
    return {**state, **made}, f"tubelets are resized: theirs are of {theirs} frames, rows and columns, the model's of {ours}"
