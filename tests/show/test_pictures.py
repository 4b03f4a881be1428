"""Pictures are opened again: sizes, pixels and what is written in the captions' data."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from sklearn.decomposition import PCA

from tubelet import masking, models
from tubelet.errors import ConfigError
from tubelet.models._tokens import patchify
from tubelet.records import ClipSpec
from tubelet.show import _sheet, attention, masks, reconstruction
from tubelet.show.confusion import confusion
from tubelet.show.contact_sheet import contact_sheet
from tubelet.show.curves import curves, smooth
from tubelet.show.embedding_map import embedding_map, project

SPEC = ClipSpec(frames=8, size=48)
GRID = (4, 3, 3)
TUBELET = (2, 16, 16)


def clip(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (8, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def opened(png: bytes) -> np.ndarray:
    return np.round(imread(io.BytesIO(png)) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return models.build("videomae_tiny", SPEC, depth=2, decoder_depth=1)


def test_a_sheet_holds_every_pixel_of_its_frames():
    frames = clip()[:3]
    picture = _sheet.sheet([_sheet.Row(frames, "caption", "remark")], least_pixels=96)
    enlarged = _sheet.enlarge(frames, 96)
    assert enlarged.shape[-2:] == (96, 96)
    found = [
        (y, x)
        for y in range(picture.shape[0] - 95)
        for x in range(16, 17)
        if (picture[y : y + 96, x : x + 96] == enlarged[0].permute(1, 2, 0).numpy()).all()
    ]
    assert len(found) == 1
    y, x = found[0]
    second = picture[y : y + 96, x + 96 + _sheet.GAP : x + 192 + _sheet.GAP]
    assert (second == enlarged[1].permute(1, 2, 0).numpy()).all()
    assert (opened(_sheet.to_png(picture))[..., :3] == picture).all()


@given(st.integers(1, 60), st.integers(1, 20))
def test_frames_shown_are_in_order_and_hold_both_ends(count, shown):
    chosen = _sheet.pick(count, shown)
    assert chosen == sorted(set(chosen)) and len(chosen) == min(count, shown)
    assert chosen[0] == 0 and (shown == 1 or chosen[-1] == count - 1)


@pytest.mark.parametrize("kind", sorted(masking.KINDS))
def test_hidden_pixels_are_those_of_hidden_tokens(kind):
    mask = masking.make(kind, GRID, 0.5, 1, torch.Generator().manual_seed(1))[0]
    frames = clip()
    hidden = masks.hide(frames, mask, GRID, TUBELET)
    before, after = (patchify(values[None], TUBELET)[0] for values in (frames, hidden))
    assert (before[~mask] == after[~mask]).all() and (after[mask] == 58).all()


def test_leakage_is_none_for_tubes_all_for_frames_and_as_computed_for_random_masks():
    def leak(kind: str, ratio: float, seed: int) -> float:
        return masks.leakage(masking.make(kind, (8, 14, 14), ratio, 1, torch.Generator().manual_seed(seed))[0], (8, 14, 14))

    assert leak("tube", 0.9, 0) == 0 and leak("frame", 0.75, 0) == 1
    for ratio, expected in ((0.75, 0.867), (0.9, 0.522), (0.95, 0.302)):
        # P(seen at one of 7 other slots) = 1 - ratio^7 with the count of hidden positions rounded down
        assert np.mean([leak("random", ratio, seed) for seed in range(20)]) == pytest.approx(expected, abs=0.02)


def test_the_sheet_of_masks_can_be_drawn():
    assert opened(masks.masks(clip(), TUBELET)).shape[0] > 7 * 96


def test_psnr_counts_masked_pixels_only():
    frames, generator = clip(), np.random.default_rng(0)
    where = torch.from_numpy(generator.random((8, 1, 48, 48)) < 0.3)
    rebuilt = clip(1)
    full = where.expand_as(frames).numpy()
    error = ((frames.numpy().astype(float) - rebuilt.numpy()) / 255) ** 2
    expected = -10 * np.log10(error[full].mean())
    assert reconstruction.psnr(frames, rebuilt, where) == pytest.approx(expected)
    elsewhere = torch.where(where, rebuilt, 255 - rebuilt)
    assert reconstruction.psnr(frames, elsewhere, where) == pytest.approx(expected)
    assert reconstruction.psnr(frames, torch.where(where, frames, rebuilt), where) == float("inf")


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6), st.booleans())
def test_the_honest_picture_does_not_know_what_was_hidden(model, seed, normalize_target):
    mask = masking.make("tube", GRID, 0.75, 1, torch.Generator().manual_seed(seed))[0]
    frames = clip(seed)
    hidden = masks.pixel_mask(mask, GRID, TUBELET)
    other = torch.where(hidden, clip(seed + 1), frames)
    first, second = (reconstruction.reconstruct(model, values, mask, normalize_target) for values in (frames, other))
    assert torch.equal(first.honest, second.honest)
    visible = (~hidden).expand_as(frames)
    assert torch.equal(first.honest[visible], frames[visible])
    assert (first.target_normalized is None) is not normalize_target


def test_with_a_perfect_prediction_the_target_normalised_picture_is_the_original():
    """The prediction is replaced by the true target, computed here from its definition."""

    class Perfect(torch.nn.Module):
        name, tubelet, decoder = "perfect", TUBELET, True

        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, frames, mask):
            tokens = patchify(frames, TUBELET)[mask].float().unflatten(1, (-1, 3)) / 255
            mean, deviation = tokens.mean(dim=1, keepdim=True), tokens.var(dim=1, keepdim=True).sqrt()
            return {"prediction": ((tokens - mean) / (deviation + 1e-6)).flatten(1)[None]}

    frames = clip()
    made = reconstruction.reconstruct(Perfect(), frames, kind="tube", ratio=0.7)
    assert made.target_normalized is not None
    assert (made.target_normalized.int() - frames.int()).abs().max() <= 1
    assert made.psnr["target_normalized"] > 50 > made.psnr["honest"]


def test_guessed_brightness_is_the_mean_of_equally_near_neighbours():
    mask = torch.tensor([False, True, False])
    mean, std = reconstruction.neighbour_statistics(torch.tensor([[[0.2]] * 4, [[0.6]] * 4]), mask, (1, 1, 3))
    assert mean.shape == (1, 1, 1) and float(mean) == pytest.approx(0.4) and float(std) == pytest.approx(0)


def test_strips_name_their_rows_and_the_animation_has_even_sides(model):
    made = reconstruction.reconstruct(model, clip(), kind="tube", ratio=0.7)
    captions = [row.caption for row in reconstruction.rows(made)]
    assert captions == [
        part[0] for part in (reconstruction.ORIGINAL, reconstruction.MASKED, reconstruction.TARGET, reconstruction.HONEST)
    ]
    assert "put back" in reconstruction.rows(made)[2].remark and "nothing hidden is used" in reconstruction.rows(made)[3].remark
    plain = reconstruction.reconstruct(model, clip(), kind="tube", ratio=0.7, normalize_target=False)
    assert [row.caption for row in reconstruction.rows(plain)][2:] == ["reconstruction, honest"]
    assert opened(reconstruction.strip(made, torch.arange(8) / 10)).shape[0] > 4 * 96
    for result in (made, plain):
        moving = reconstruction.animation(result)
        assert moving.shape[0] == 8 and moving.shape[2] % 2 == 0 == moving.shape[3] % 2 and moving.dtype == torch.uint8


def test_a_model_without_decoder_cannot_reconstruct():
    with pytest.raises(ConfigError, match="no decoder and cannot reconstruct"):
        reconstruction.reconstruct(models.build("videomae_tiny", SPEC, ("a", "b"), depth=1), clip(), kind="tube", ratio=0.7)


def test_attention_received_sums_to_one_and_can_be_drawn(model):
    weights = attention.received(model, clip())
    assert weights.shape == GRID and float(weights.sum()) == pytest.approx(1, abs=1e-5)
    assert attention.overlay(clip(), weights).shape == clip().shape
    assert opened(attention.attention(model, clip())).shape[0] > 2 * 96
    assert attention.can_be_shown(model)
    assert not attention.can_be_shown(models.build("single_frame", SPEC, ("a", "b")))
    many = ClipSpec(frames=32, size=256)  # 4,096 tokens
    assert not attention.can_be_shown(models.build("videomae_tiny", many, ("a", "b"), depth=1))


def test_the_map_is_scikit_learns_pca_up_to_sign():
    embeddings = np.random.default_rng(0).normal(size=(40, 9)) * np.arange(1, 10)
    points, shares = project(torch.from_numpy(embeddings))
    pca = PCA(2).fit(embeddings)
    np.testing.assert_allclose(np.abs(points.numpy()), np.abs(pca.transform(embeddings)), atol=1e-9)
    np.testing.assert_allclose(shares.numpy(), pca.explained_variance_ratio_)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("classes", [2, 12, 30, 70])
def test_confusion_and_map_can_be_drawn_for_any_number_of_classes(classes, dark):
    names = [f"class {i}" for i in range(classes)]
    assert opened(confusion(np.eye(classes, dtype=int), names, dark)).ndim == 3
    embeddings = torch.randn(classes * 2, 8, generator=torch.Generator().manual_seed(0))
    assert opened(embedding_map(embeddings, list(range(classes)) * 2, names, dark)).ndim == 3


def test_a_map_of_one_video_and_of_no_labels_can_be_drawn():
    assert opened(embedding_map(torch.ones(1, 8), None, ())).ndim == 3


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=200))
def test_smoothing_invents_nothing(values):
    array = np.array(values)
    running = smooth(array)
    assert len(running) == len(array)
    assert running.min() >= array.min() - 1e-9 and running.max() <= array.max() + 1e-9


def test_curves_leave_gaps_where_a_value_is_missing():
    steps = list(range(100))
    values = [float("nan") if step == 50 else 1.0 / (step + 1) for step in steps]
    panels = {
        "Loss": {"training": (steps, values), "validation": (steps[::20], values[::20])},
        "Rate": {"training": ([0], [1.0])},
    }
    for dark in (False, True):
        assert opened(curves(panels, dark=dark)).ndim == 3


def test_a_contact_sheet_shows_any_number_of_frames():
    assert opened(contact_sheet([(clip(), "a, taken for b", "90% sure"), (clip()[:1], "c", "")])).shape[0] > 2 * 96
