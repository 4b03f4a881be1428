"""Next-token prediction: the codebook against scikit-learn, and that no token sees a later one."""

import math
from dataclasses import replace

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from tubelet import models
from tubelet.errors import ConfigError
from tubelet.models._codebook import kmeans, nearest
from tubelet.models._model import Model
from tubelet.objectives import next_token
from tubelet.objectives.next_token import NextTokenConfig
from tubelet.records import Batch, ClipSpec
from tubelet.weights.load import transfer

SPEC = ClipSpec(frames=4, size=32, stride_frames=1)
SMALL = dict(width=32, depth=2, heads=2, decoder=False, patch=8)
WORDS = NextTokenConfig(vocabulary=16, samples=200)


def batch(clips: int = 6) -> Batch:
    """Waves of one frequency and direction for each clip, which move: the next tubelet follows from those before."""
    y, x, t = torch.arange(32), torch.arange(32), torch.arange(4)
    rows = [
        torch.sin(0.2 * (i + 1) * (x[None, None] + (i % 3) * y[None, :, None]) + t[:, None, None] * i) for i in range(clips)
    ]
    frames = (127.5 + 127 * torch.stack(rows))[:, :, None].expand(-1, -1, 3, -1, -1).to(torch.uint8)
    return Batch(frames, torch.zeros(clips, 4, dtype=torch.float64), [str(i) for i in range(clips)])


def fitted(config: NextTokenConfig = WORDS, **options: object) -> Model:
    torch.manual_seed(0)
    model = models.build("videomae_tiny", SPEC, **{**SMALL, "vocabulary": config.vocabulary, **options})
    next_token.prepare(model, iter([batch()] * 99), config, torch.Generator().manual_seed(0))
    return model


def blobs() -> Tensor:
    centres = torch.randn(12, 20) * 3
    return torch.cat([centre + torch.randn(50, 20) for centre in centres])


def test_from_the_same_beginning_it_is_scikit_learns_kmeans() -> None:
    samples = blobs()
    first = samples[::50][:12].clone()
    centres, inertia = kmeans(samples, 12, 100, torch.Generator(), first)
    theirs = KMeans(12, init=first.numpy(), n_init=1, max_iter=100, tol=0, algorithm="lloyd").fit(samples.numpy())
    torch.testing.assert_close(centres, torch.from_numpy(theirs.cluster_centers_), rtol=1e-4, atol=1e-4)
    assert inertia == pytest.approx(theirs.inertia_, rel=1e-5)
    assert nearest(samples, centres)[0].tolist() == theirs.labels_.tolist()


def test_its_own_beginning_is_as_good_and_repeats_itself() -> None:
    samples = torch.randn(600, 20).cumsum(dim=1)
    centres, inertia = kmeans(samples, 40, 50, torch.Generator().manual_seed(0))
    again, _ = kmeans(samples, 40, 50, torch.Generator().manual_seed(0))
    theirs = KMeans(40, n_init=1, max_iter=50, random_state=0).fit(samples.numpy())
    assert inertia < 1.05 * theirs.inertia_ and torch.equal(centres, again)


def test_fewer_different_tubelets_than_words_are_all_kept() -> None:
    samples = torch.eye(5).repeat(10, 1)
    centres, inertia = kmeans(samples, 8, 10, torch.Generator().manual_seed(0))
    assert inertia == 0 and set(map(tuple, centres.tolist())) == set(map(tuple, torch.eye(5).tolist()))


def test_a_clip_made_of_codewords_is_read_back() -> None:
    model = fitted()
    ids = torch.randint(0, 16, (2, 32))
    assert torch.equal(model.vocabulary.ids(model.vocabulary.pixels(ids)), ids)  # type: ignore[union-attr, operator]
    plain = model(batch().frames, next_token=True)["token_ids"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(batch().frames, next_token=True)["token_ids"], plain)  # the same words in any precision


def test_logits_do_not_depend_on_later_tokens() -> None:
    model, frames = fitted().eval(), batch(2).frames
    before = model(frames, next_token=True)
    for place in (0, 13, 31):
        slot, rest = divmod(place, 16)
        y, x = 8 * (rest // 4), 8 * (rest % 4)
        changed = frames.clone()
        changed[:, 2 * slot : 2 * slot + 2, :, y : y + 8, x : x + 8] ^= 255
        after = model(changed, next_token=True)
        assert not torch.equal(after["token_ids"][:, place], before["token_ids"][:, place])
        assert torch.equal(after["token_logits"][:, :place], before["token_logits"][:, :place])
        if place < 31:
            assert not torch.equal(after["token_logits"][:, place], before["token_logits"][:, place])


def test_the_first_loss_is_that_of_guessing_and_it_falls() -> None:
    config, clips = NextTokenConfig(vocabulary=64, samples=500), batch()
    model = fitted(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss, numbers = next_token.loss(model, clips, config, torch.Generator())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(64), rel=0.05)
    assert losses[-1] < 0.5 * losses[0] and numbers["token_accuracy"] > 0.5
    assert all(p.grad is not None and p.grad.any() for name, p in model.named_parameters() if name.startswith("blocks.0"))


def test_what_copying_would_tell() -> None:
    model, clips = fitted(), batch(2)
    clips.frames[:] = clips.frames[:, :1]  # nothing moves
    assert next_token.measure(model, clips, WORDS, torch.Generator())["copy_accuracy"].tolist() == [1, 1]
    one_slot = models.build("videomae_tiny", replace(SPEC, frames=2), **SMALL, vocabulary=16)
    found = next_token.measure(one_slot, Batch(clips.frames[:, :2], clips.seconds, ["a", "b"]), WORDS, torch.Generator())
    assert "copy_accuracy" not in found and found["loss"].isfinite().all()


def test_a_codebook_that_came_with_the_model_stays_and_fine_tuning_drops_it() -> None:
    model = fitted()
    codebook = model.vocabulary.codebook.clone()  # type: ignore[union-attr, operator]
    next_token.prepare(model, iter([batch(2)] * 99), WORDS, torch.Generator().manual_seed(5))
    assert torch.equal(model.vocabulary.codebook, codebook)  # type: ignore[union-attr]
    classifier = models.build("videomae_tiny", SPEC, ["a", "b"], **SMALL)
    assert all(name.startswith(("fc_norm.", "head.")) for name in transfer(model, classifier))
    assert torch.equal(classifier.embed.weight, model.embed.weight)  # type: ignore[union-attr]


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ConfigError, match="videomae_tiny has no vocabulary of tokens: pretrain a videomae model"):
        next_token.loss(models.build("videomae_tiny", SPEC, **SMALL), batch(), WORDS, torch.Generator())
    with pytest.raises(ConfigError, match=r"next_token.samples is 100: it must be 512 or more \(next_token.vocabulary"):
        NextTokenConfig(samples=100)
    with pytest.raises(ConfigError, match="next_token.vocabulary is 1: it must be 2 or more"):
        NextTokenConfig(vocabulary=1)
