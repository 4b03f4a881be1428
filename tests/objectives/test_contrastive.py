"""What InfoNCE must be (shared facts), who counts as a negative, and matching with hard negatives."""

import math

import pytest
import torch
import torch.nn.functional as F

from tubelet.errors import ConfigError
from tubelet.models._model import Model
from tubelet.objectives import contrastive
from tubelet.objectives.contrastive import ContrastiveConfig
from tubelet.records import Batch

from ..models.small import clips, small

CAPTIONS = ["a hand moves left", "a hand moves right", "a door opens", "a door closes", "nothing moves", "a ball falls"]


def batch(model: Model, texts: list[str]) -> Batch:
    frames = clips(model.spec, len(texts))
    return Batch(frames, torch.zeros(len(texts), frames.shape[1]), [str(i) for i in range(len(texts))], texts=texts)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_aligned_orthonormal_pairs_cost_nothing_and_random_ones_the_logarithm() -> None:
    assert float(contrastive.info_nce(100 * torch.eye(32)).max()) < 1e-6
    vectors = F.normalize(torch.randn(2, 256, 512), dim=2)
    random = contrastive.info_nce(vectors[0] @ vectors[1].T).mean()
    assert float(random) == pytest.approx(math.log(256), abs=0.01)


def test_it_is_symmetric_and_is_the_mean_of_both_cross_entropies() -> None:
    scores = torch.randn(7, 7)
    found = contrastive.info_nce(scores)
    torch.testing.assert_close(found, contrastive.info_nce(scores.T))
    target = torch.arange(7)
    wanted = (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
    torch.testing.assert_close(found.mean(), wanted)
    torch.testing.assert_close(contrastive.info_nce(scores, slice(2, 5)), found[2:5])


def test_loss_is_that_of_the_formula_and_the_log_has_the_temperature() -> None:
    model = small("video_text_tiny").eval()
    data = batch(model, CAPTIONS)
    loss, numbers = contrastive.loss(model, data, ContrastiveConfig(), generator())
    with torch.no_grad():
        scores = model(data.frames)["embedding"] @ model.embed_text(CAPTIONS).T / 0.07
    torch.testing.assert_close(loss.detach(), contrastive.info_nce(scores).mean(), rtol=1e-4, atol=1e-5)
    assert float(numbers["temperature"]) == pytest.approx(0.07)
    assert float(numbers["recall_at_1"]) == float((scores.argmax(dim=1) == torch.arange(6)).float().mean())


def test_equal_captions_are_no_negatives_of_each_other() -> None:
    model = small("video_text_tiny").eval()
    same = batch(model, ["a hand moves left"] * 4)
    with torch.no_grad():
        found = contrastive.measure(model, same, ContrastiveConfig(), generator())
        strict = contrastive.measure(model, same, ContrastiveConfig(same_text_matches=False), generator())
    assert found["loss"].abs().max() < 1e-6 and bool(found["recall_at_1"].all())
    assert bool((strict["loss"] > 0.5).all())  # four texts that nothing tells apart


def test_hard_negatives_are_drawn_by_similarity_and_never_a_right_one() -> None:
    scores = torch.tensor([[-math.inf, 0.0, math.log(3.0)]]).expand(4000, -1)
    drawn = contrastive._drawn(scores, torch.rand(4000))
    assert not (drawn == 0).any()
    assert float((drawn == 2).float().mean()) == pytest.approx(0.75, abs=0.03)


def test_matching_learns_and_is_a_mean_of_three_judgements() -> None:
    model = small("video_text_tiny", matching=True)
    data, config = batch(model, CAPTIONS), ContrastiveConfig(matching=1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    found = []
    for _ in range(40):
        loss, numbers = contrastive.loss(model, data, config, generator())
        found.append((float(loss.detach()), float(numbers["matching_loss"]), float(numbers["matching_accuracy"])))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert found[0][1] == pytest.approx(math.log(2), abs=0.2)
    assert found[-1][1] < 0.2 and found[-1][2] == 1.0 and found[-1][0] < found[0][0] / 4
    alone, _ = contrastive.loss(model, batch(model, CAPTIONS[:1] * 2), config, generator())  # there is nothing wrong to draw
    assert bool(alone.isfinite())


def test_mistakes_are_said() -> None:
    model = small("video_text_tiny")
    bare = Batch(clips(model.spec), torch.zeros(2, 4), ["a", "b"])
    with pytest.raises(ConfigError, match="no captions: give a table with a column `text`"):
        contrastive.loss(model, bare, ContrastiveConfig(), generator())
    with pytest.raises(ConfigError, match=r"videomae_tiny reads no text.*tubelet align"):
        video = small("videomae_tiny")
        contrastive.loss(video, batch(video, CAPTIONS), ContrastiveConfig(), generator())
    with pytest.raises(ConfigError, match=r"without its head: add --model\.options\.matching true"):
        contrastive.loss(model, batch(model, CAPTIONS), ContrastiveConfig(matching=1.0), generator())
    with pytest.raises(ConfigError, match=r"contrastive\.matching is -1"):
        ContrastiveConfig(matching=-1)
