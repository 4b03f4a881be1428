"""One model asked by many at once answers each as if it had asked alone."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tubelet import models
from tubelet.records import ClipSpec
from tubelet.web.batcher import Batcher

SPEC = ClipSpec(frames=4, stride_frames=2, size=16)
SIZES = dict(depth=1, width=24, heads=2, patch=8)


def test_concurrent_clips_share_batches_and_get_their_own_answers():
    model = models.build("videomae_tiny", SPEC, ("a", "b", "c"), **SIZES)
    clips = torch.randint(256, (25, 1, 4, 3, 16, 16), dtype=torch.uint8)
    batcher = Batcher(model, most=5, wait_seconds=60)  # in any case until five have asked
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda clip: batcher.ask(clip).result(), clips))
    batcher.close()
    with torch.no_grad():
        alone = model.eval()(clips[:, 0])
    for name in ("logits", "embedding"):
        torch.testing.assert_close(torch.cat([answer[name] for answer in answers]), alone[name], rtol=1e-4, atol=1e-5)
    assert batcher.sizes == {5: 5}


def test_what_cannot_be_answered_goes_to_whoever_asked_and_the_others_go_on():
    batcher = Batcher(models.build("videomae_tiny", SPEC, ("a", "b"), **SIZES), most=1)
    with pytest.raises(Exception, match="frames"):
        batcher.ask(torch.zeros(1, 3, 3, 16, 16, dtype=torch.uint8)).result()
    assert batcher.ask(torch.zeros(1, 4, 3, 16, 16, dtype=torch.uint8)).result()["logits"].shape == (1, 2)
    batcher.close()


def test_closing_answers_what_waits_and_what_was_given_up_costs_nothing():
    batcher = Batcher(models.build("videomae_tiny", SPEC, ("a", "b"), **SIZES), most=4, wait_seconds=60)
    asked = [batcher.ask(torch.zeros(1, 4, 3, 16, 16, dtype=torch.uint8)) for _ in range(10)]
    for future in asked[8:]:
        assert future.cancel()
    batcher.close()
    assert all(future.result(timeout=60)["logits"].shape == (1, 2) for future in asked[:8])
    assert sum(size * count for size, count in batcher.sizes.items()) == 8
