"""Every family is probed for what it owes to time; what cannot know the order of frames tells exactly one half of directions."""

from pathlib import Path

import pytest
import torch

from tubelet import models
from tubelet.evaluate.probe import Settings, probe
from tubelet.evaluate.temporal_order import ORDERS
from tubelet.models.fusion import NETWORKS
from tubelet.weights.save import save

from .small import family_of, randomise, small

CLASSES = ("translate_left", "translate_right")
VARIANTS = sorted(models.variants())
FIRST_OF_FAMILY = sorted({family_of(name): name for name in reversed(VARIANTS)}.values())
BLIND = {
    **{name: {} for name, row in NETWORKS.items() if row[0] in ("single", "late pool")},
    "frame_vit_base_16": {},
    "two_stream_resnet18": dict(streams="spatial"),
    "timesformer_base_space": {},
}


def probed(name: str, data: Path, folder: Path, **options: object) -> dict[str, object]:
    """What the probe says of a small model of random weights, from its own clips alone."""
    model = small(name, CLASSES, **options).eval()
    randomise(model)
    save(model, folder / "model")
    spec = model.spec
    asked = Settings(frames=(spec.frames,), strides=(spec.stride_frames,) if spec.sampling != "segments" else (), workers=0)
    torch.set_num_threads(1)
    found, report = probe(folder / "model", [str(data)], folder / "out", asked)
    assert report.exists()
    return found


def check_whole(found: dict[str, object]) -> None:
    """Every number of the report is there, and is of all four videos."""
    assert [row["order"] for row in found["orders"]] == list(ORDERS)  # type: ignore[attr-defined]
    assert found["asked"] == 4 and not found["missing"] and found["verdict"]
    assert 0 <= found["direction"]["share"] <= 1  # type: ignore[index]
    assert [row["share"] for row in found["saturation"]] == [found["orders"][0]["share"]]  # type: ignore[attr-defined,index]


@pytest.mark.parametrize("name", [name for name in FIRST_OF_FAMILY if name not in BLIND])
def test_the_first_of_every_family(name: str, motion_folder: Path, tmp_path: Path) -> None:
    check_whole(probed(name, motion_folder, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in {*FIRST_OF_FAMILY, *BLIND}])
def test_every_other_variant(name: str, motion_folder: Path, tmp_path: Path) -> None:
    check_whole(probed(name, motion_folder, tmp_path))


@pytest.mark.parametrize("name", BLIND)
def test_what_is_blind_to_order_tells_one_half(name: str, motion_folder: Path, tmp_path: Path) -> None:
    found = probed(name, motion_folder, tmp_path, **BLIND[name])
    check_whole(found)
    assert found["order_invariant"] and found["direction"]["share"] == 0.5  # type: ignore[index]
