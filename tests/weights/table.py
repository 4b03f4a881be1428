"""The table layout x (inspect, load, back, parity) of docs/weights.md, measured on small models with random weights:

python -m tests.weights.table

Below it the image models: the largest difference between a video model that sees one frame and the image model that it began from.
"""

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from tubelet.weights import foreign, image, layouts
from tubelet.weights.convert import convert
from tubelet.weights.inspect import inspect

from ..models.small import family_of
from .test_layouts import CASES, Case

PARTS = ("family", "layout", "what", "inspect", "loads", "bits back", "largest difference from the other implementation")


def rows() -> Iterator[tuple[str, ...]]:
    """One row a case, in the order of CASES."""
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            yield row(case, Path(folder))


def row(case: Case, folder: Path) -> tuple[str, ...]:
    """The other implementation is asked about what was read from this layout; it reads a transformers folder."""
    made, path = case.model(), case.write(folder)
    found = inspect(path, case.given)
    right = (found["name"], found["layout"]) == (case.variant, case.layout)
    read, _ = foreign.read(path, case.given)
    state, wanted = read.state_dict(), made.state_dict()
    same = sum(torch.equal(state[key], wanted[key]) for key in wanted)
    family = family_of(case.variant)
    proof = convert(read, folder / "again", "huggingface") if (family, "huggingface") in layouts.known() else None
    difference = "none to import" if proof is None else proof.why if proof.difference is None else f"{proof.difference:.0e}"
    what = f"`{case.variant}`, {'classifier' if case.classes else 'bare'}"
    return (f"`{family}`", f"`{case.layout}`", what, "right" if right else "WRONG", "yes" if found["loads"] else found["problem"],
            f"{same} of {len(wanted)}", difference)  # fmt: skip


def image_rows() -> Iterator[tuple[str, ...]]:
    """transformers' ViT and CLIP tower with random weights, each under the names of others too."""
    from . import test_image

    vit, clip = test_image.vit(), test_image.vit("CLIPVisionModel")
    clip.load_state_dict({key: value.half().float() for key, value in clip.state_dict().items()})  # as OpenAI keeps them
    named = {"timm": test_image.as_timm(vit.state_dict()), "openai": test_image.openai(clip)}
    options = test_image.OPTIONS
    for layout, theirs, state, variant, more in (
        ("huggingface", vit, vit.state_dict(), "timesformer_base", {}), ("timm", vit, named["timm"], "timesformer_base", {}),
        ("clip", clip, clip.state_dict(), "vivit_base", {"tubelet": 1}),
        ("openai", clip, named["openai"], "vivit_base", {"tubelet": 1}),
    ):  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            path = test_image.saved(state, Path(folder) / "image")
            model, account = image.begin(path, variant, dict(frames=1, size=32), options=options | more)
        frames = test_image.pictures()
        with torch.no_grad():
            found = theirs(test_image.values(model, frames))
            wanted = found.pooler_output if theirs is clip else found.last_hidden_state[:, 0]
            difference = (model(frames)["embedding"] - wanted).abs().max()
        yield f"`{layout}`", f"`{variant}`", "right" if account["layout"] == layout else "WRONG", f"{difference:.0e}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(f"| {' | '.join(PARTS)} |\n|{'---|' * len(PARTS)}")
    for one in rows():
        print(f"| {' | '.join(one)} |", flush=True)
    print("\n| image layout | begins | recognised | largest difference |\n|---|---|---|---|")
    for one in image_rows():
        print(f"| {' | '.join(one)} |", flush=True)
