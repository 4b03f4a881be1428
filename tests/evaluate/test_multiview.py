"""Views are compared with plain forward passes written out here."""

import pytest
import torch

from tubelet import datasets, models
from tubelet.errors import DataError
from tubelet.evaluate.multiview import label_numbers, look, views
from tubelet.records import ClipSpec, Example
from tubelet.views import load_views

SPEC = ClipSpec(frames=4, stride_frames=2, size=32)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(1)
    made = models.build("videomae_tiny", SPEC, ("left", "right", "other"), depth=2, patch=8)
    torch.nn.init.normal_(made.head.weight)  # the head starts close to zero; these tests want answers that differ
    return made.eval()


@pytest.fixture(scope="module")
def examples(motion_folder) -> tuple[Example, ...]:
    return tuple(e for e in datasets.read(motion_folder).examples if e.split == "val")


def test_one_view_is_a_plain_forward_pass(model, examples):
    found = look(model, examples)
    for index, example in enumerate(examples):
        frames, seconds = load_views(example, SPEC)
        with torch.no_grad():
            out = model(frames)
        torch.testing.assert_close(found.probabilities[index].float(), out["logits"][0].softmax(0))
        torch.testing.assert_close(found.embeddings[index].float(), out["embedding"][0])
        assert torch.equal(found.seconds[index], seconds)
    assert found.examples == examples and found.missing == ()


@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
def test_probabilities_and_embeddings_are_averaged_over_clips_and_crops(model, examples, batch_size):
    found = look(model, examples, clips=3, crops=3, batch_size=batch_size)
    for index, example in enumerate(examples):
        frames, seconds = load_views(example, SPEC, 3, 3)
        assert len(frames) == 9
        with torch.no_grad():
            out = model(frames)
        torch.testing.assert_close(found.probabilities[index].float(), out["logits"].softmax(1).mean(0))
        torch.testing.assert_close(found.embeddings[index].float(), out["embedding"].mean(0))
        assert torch.equal(found.seconds[index], seconds)
        assert float(found.probabilities[index].sum()) == pytest.approx(1)


def test_unreadable_videos_are_named_and_the_others_are_not_touched(model, examples, tmp_path):
    empty, text = tmp_path / "empty.mp4", tmp_path / "text.mp4"
    empty.write_bytes(b"")
    text.write_text("not a video")
    broken = [Example(str(path), path.name, label="left") for path in (empty, text, tmp_path / "gone.mp4")]
    mixed = [broken[0], *examples[:2], broken[1], *examples[2:], broken[2]]
    found, alone = look(model, mixed, clips=2, batch_size=3), look(model, examples, clips=2, batch_size=3)
    assert [id for id, _ in found.missing] == ["empty.mp4", "text.mp4", "gone.mp4"]
    assert all(reason for _, reason in found.missing)
    assert found.examples == alone.examples
    torch.testing.assert_close(found.probabilities, alone.probabilities)
    with pytest.raises(DataError, match=r"none of 3 videos could be read; the first: empty\.mp4: "):
        look(model, broken)


def test_views_come_video_by_video_and_the_model_is_left_as_it_was(model, examples):
    model.train()
    ids = [view.example.id for view in views(model, examples, clips=2, batch_size=3)]
    assert ids == [example.id for example in examples for _ in range(2)]
    assert model.training
    model.eval()


def test_a_video_twice_is_an_error(model, examples):
    with pytest.raises(DataError, match="1 of 2 videos share an id"):
        look(model, [examples[0], examples[0]])


def test_labels_the_model_never_learned_are_named():
    examples = [Example("a", "a", label="left"), Example("b", "b", label="jump")]
    assert label_numbers(examples, ("jump", "left")).tolist() == [1, 0]
    with pytest.raises(DataError, match=r"never learned: 'jump' \(it knows 2: 'left', 'right'\)"):
        label_numbers(examples, ("left", "right"))
    with pytest.raises(DataError, match="1 of 2 videos have no label, the first is c"):
        label_numbers([examples[0], Example("c", "c")], ("left", "jump"))
