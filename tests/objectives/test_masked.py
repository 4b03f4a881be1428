"""The masked objective against formulas written here from the paper, in numpy."""

import numpy as np
import pytest
import torch

from tubelet import models
from tubelet.errors import ConfigError
from tubelet.objectives import masked
from tubelet.records import Batch, ClipSpec

SPEC = ClipSpec(frames=4, size=32, stride_frames=1)
SMALL = dict(width=32, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2, patch=8)


def batch(clips: int = 3) -> Batch:
    frames = torch.randint(0, 256, (clips, 4, 3, 32, 32), dtype=torch.uint8)
    return Batch(frames, torch.zeros(clips, 4, dtype=torch.float64), [str(i) for i in range(clips)])


def target_by_hand(frames: np.ndarray, mask: np.ndarray, normalize: bool) -> np.ndarray:
    """Token by token with loops: slots of 2 frames, 8x8 pixels, values in the order (t, y, x, colour)."""
    rows = []
    for clip, hidden in zip(frames / 255.0, mask, strict=True):
        token, row = 0, []
        for t in range(0, 4, 2):
            for y in range(0, 32, 8):
                for x in range(0, 32, 8):
                    if hidden[token]:
                        cell = clip[t : t + 2, :, y : y + 8, x : x + 8].transpose(0, 2, 3, 1).reshape(-1, 3)
                        if normalize:
                            cell = (cell - cell.mean(0)) / (cell.std(0, ddof=1) + 1e-6)
                        row.append(cell.reshape(-1))
                    token += 1
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("normalize", [True, False])
def test_target_is_that_of_the_paper(normalize: bool) -> None:
    clips = batch()
    mask = torch.rand(3, 32).argsort(1) < 20
    ours = masked.target(clips.frames, masked.places(mask).predicted, (2, 8, 8), normalize)
    wanted = target_by_hand(clips.frames.double().numpy(), mask.numpy(), normalize)
    assert ours.shape == (3, 20, 2 * 8 * 8 * 3)
    np.testing.assert_allclose(ours.numpy(), wanted, atol=2e-5)


def test_a_plain_patch_gives_zeros_and_no_nan() -> None:
    frames = torch.full((1, 4, 3, 32, 32), 128, dtype=torch.uint8)
    assert torch.equal(masked.target(frames, torch.arange(32)[None], (2, 8, 8), True), torch.zeros(1, 32, 384))


@pytest.mark.parametrize(("name", "distance"), [
    ("mse", lambda e: e**2),
    ("l1", abs),
    ("smooth_l1", lambda e: np.where(abs(e) < 1, 0.5 * e**2, abs(e) - 0.5)),
])  # fmt: skip
def test_loss_is_the_mean_distance_of_hidden_tokens_only(name: str, distance) -> None:  # type: ignore[no-untyped-def]
    model, clips = models.build("videomae_tiny", SPEC, **SMALL), batch()
    config = masked.MaskedConfig(ratio=0.75, loss=name)  # type: ignore[arg-type]
    loss, _ = masked.loss(model, clips, config, torch.Generator().manual_seed(1))
    mask = masked.masking.make("tube", model.grid, 0.75, 3, torch.Generator().manual_seed(1))
    prediction = model(clips.frames, mask=mask)["prediction"].detach().double().numpy()
    error = prediction - target_by_hand(clips.frames.double().numpy(), mask.numpy(), True)
    assert loss.item() == pytest.approx(distance(error).mean(), rel=1e-5)


def test_pixels_of_visible_tokens_do_not_count() -> None:
    model, clips = models.build("videomae_tiny", SPEC, **SMALL), batch(1)
    mask = masked.masking.make("tube", model.grid, 0.75, 1, torch.Generator().manual_seed(1))
    wanted = masked.target(clips.frames, masked.places(mask).predicted, model.tubelet, True)
    visible = (~mask[0]).nonzero()[0].item() % 16  # a position that is seen, in every slot
    y, x = 8 * (visible // 4), 8 * (visible % 4)
    clips.frames[..., y : y + 8, x : x + 8] = 255 - clips.frames[..., y : y + 8, x : x + 8]
    assert torch.equal(masked.target(clips.frames, masked.places(mask).predicted, model.tubelet, True), wanted)


def test_running_cell_leaves_out_tokens_the_encoder_saw() -> None:
    model, clips = models.build("videomae_tiny", SPEC, **SMALL), batch()
    config = masked.MaskedConfig(ratio=0.75, decoder_mask="running_cell", decoder_ratio=0.5)
    loss, _ = masked.loss(model, clips, config, torch.Generator().manual_seed(1))
    hidden = masked.masking.make("tube", model.grid, 0.75, 3, torch.Generator().manual_seed(1))
    dropped = masked.masking.make("running_cell", model.grid, 0.5, 3)
    prediction = model(clips.frames, mask=hidden, decoder_mask=dropped)["prediction"].detach().double().numpy()
    error = (prediction - target_by_hand(clips.frames.double().numpy(), (~dropped).numpy(), True)) ** 2
    counted = hidden[~dropped].view(3, -1).numpy()
    assert 0 < counted.sum() < counted.size
    per_clip = [error[i][counted[i]].mean() for i in range(3)]
    assert loss.item() == pytest.approx(np.mean(per_clip), rel=1e-5)


def test_loss_is_the_same_number_from_the_same_generator() -> None:
    model, clips, config = models.build("videomae_tiny", SPEC, **SMALL), batch(), masked.MaskedConfig(ratio=0.5)
    first, again = (masked.loss(model, clips, config, torch.Generator().manual_seed(7))[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, masked.loss(model, clips, config, torch.Generator().manual_seed(8))[0])


def test_a_model_without_a_decoder_is_refused() -> None:
    model = models.build("videomae_tiny", SPEC, ["a", "b"], **SMALL)
    with pytest.raises(ConfigError, match="has no decoder to predict hidden pixels with"):
        masked.loss(model, batch(), masked.MaskedConfig(ratio=0.5), torch.Generator())


@pytest.mark.parametrize(("settings", "message"), [
    ({"mask": "tub"}, "unknown mask 'tub': did you mean 'tube'"),
    ({"decoder_mask": "runing_cell"}, "did you mean 'running_cell'"),
    ({"ratio": 1.0}, "masked.ratio is 1.0: it must lie between 0 and 1"),
    ({"loss": "mae"}, "unknown masked loss 'mae'"),
])  # fmt: skip
def test_impossible_settings(settings: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ConfigError, match=message):
        masked.MaskedConfig(**settings)


@pytest.mark.parametrize(("classes", "dual"), [((), ""), ((), "running_cell"), (("a", "b"), "")])
def test_a_forward_pass_is_one_graph_that_waits_for_nothing(classes: tuple[str, ...], dual: str) -> None:
    """`fullgraph` refuses whatever asks for a value: a count of masked tokens, a tensor's size that follows from its values."""
    model, clips = models.build("videomae_tiny", SPEC, classes, **SMALL), batch()
    config = masked.MaskedConfig(ratio=0.75, decoder_mask=dual)
    at = None if classes else masked.masks(model, clips, config, torch.Generator().manual_seed(1))[0]
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for training in (True, False):
        model.train(training)
        with torch.inference_mode(not training):
            wanted, got = model(clips.frames, mask=at), compiled(clips.frames, mask=at)
        assert got.keys() == wanted.keys() and all(torch.equal(got[key], wanted[key]) for key in wanted)


def test_masks_as_numbers_give_what_the_masks_themselves_do() -> None:
    model, clips = models.build("videomae_tiny", SPEC, **SMALL), batch()
    config = masked.MaskedConfig(mask="random", ratio=0.75, decoder_mask="running_cell")
    at, hidden = masked.masks(model, clips, config, torch.Generator().manual_seed(1))
    mask = masked.masking.make("random", model.grid, 0.75, 3, torch.Generator().manual_seed(1))
    dropped = masked.masking.make("running_cell", model.grid, 0.5, 3)
    for row in range(3):
        assert at.visible[row].tolist() == [i for i in range(32) if not mask[row, i]]
        assert at.predicted[row].tolist() == [i for i in range(32) if not dropped[row, i]]
        assert hidden is not None and hidden[row].tolist() == [bool(mask[row, i]) for i in at.predicted[row]]
    one, other = model(clips.frames, mask=at), model(clips.frames, mask=mask, decoder_mask=dropped)
    assert all(torch.equal(one[key], other[key]) for key in one)
