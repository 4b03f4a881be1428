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
    clips = torch.randint(256, (24, 1, 4, 3, 16, 16), dtype=torch.uint8)
    batcher = Batcher(model, most=5, wait_seconds=0.2)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(batcher, clips))
    batcher.close()
    with torch.no_grad():
        alone = model.eval()(clips[:, 0])
    for name in ("logits", "embedding"):
        torch.testing.assert_close(torch.cat([answer[name] for answer in answers]), alone[name], rtol=1e-4, atol=1e-5)
    assert max(batcher.sizes) == 5 and sum(size * count for size, count in batcher.sizes.items()) == 24


def test_what_cannot_be_answered_goes_to_whoever_asked_and_the_others_go_on():
    batcher = Batcher(models.build("videomae_tiny", SPEC, ("a", "b"), **SIZES), most=1)
    with pytest.raises(Exception, match="frames"):
        batcher(torch.zeros(1, 3, 3, 16, 16, dtype=torch.uint8))
    assert batcher(torch.zeros(1, 4, 3, 16, 16, dtype=torch.uint8))["logits"].shape == (1, 2)
    batcher.close()


def test_closing_answers_what_waits():
    batcher = Batcher(models.build("videomae_tiny", SPEC, ("a", "b"), **SIZES), most=4, wait_seconds=0.05)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(batcher, torch.zeros(1, 4, 3, 16, 16, dtype=torch.uint8)) for _ in range(8)]
        while batcher._waiting.qsize() + sum(size * n for size, n in batcher.sizes.items()) < 8:
            pass
        batcher.close()
        assert all(future.result(timeout=60)["logits"].shape == (1, 2) for future in asked)
