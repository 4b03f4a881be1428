"""Two towers: what pooling must equal, what is frozen, what texts become, and what is told apart from a video model."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tubelet import models
from tubelet.errors import CheckpointError, ConfigError
from tubelet.features import embed_video, fingerprint
from tubelet.models._text import NO_TOKEN, TextEncoder, train_merges
from tubelet.models.video_text import AttentionPool, TemporalPool
from tubelet.train.optim import training_mode
from tubelet.video.write import write_video
from tubelet.weights.load import load_model, transfer
from tubelet.weights.save import save

from .small import SMALL, SPEC, clips, randomise, small

TEXTS = ["a red square moves left", "a blue disc turns", "DAS ÄNDERT NICHTS 日本"]
VIDEO = SMALL["videomae"][1]


def test_a_text_is_a_unit_vector_that_its_neighbours_do_not_change() -> None:
    for options in ({}, {"causal": False, "post": True, "pool": "mean"}, {"causal": False, "pool": "first"}):
        model = small("video_text_tiny", text={"width": 16, "depth": 2, "heads": 2, **options})
        randomise(model, 0.5)
        together = model.embed_text(TEXTS)
        assert together.shape == (3, model.width) and together.dtype == torch.float32
        torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
        torch.testing.assert_close(torch.cat([model.embed_text([text]) for text in TEXTS]), together)
        assert float(torch.cdist(together, together).add(torch.eye(3)).min()) > 1e-3
    assert model.embed_text([]).shape == (0, model.width)


def test_a_causal_encoder_does_not_look_ahead() -> None:
    encoder = TextEncoder(width=16, depth=2, heads=2)
    randomise(encoder)
    ids = encoder.tokenize(["abcd", "abxy"])
    encoder.options["pool"] = "first"
    with torch.no_grad():
        first, second = encoder(ids)
    assert torch.equal(first, second) and not torch.equal(ids[0], ids[1])


def test_merges_are_learned_and_every_text_has_tokens() -> None:
    merges = train_merges(TEXTS * 3, 300)
    assert merges == train_merges(TEXTS * 3, 300) and 1 < len(merges.splitlines()) <= 300 - 257
    bytes_only, merged = TextEncoder(width=8, depth=1, heads=1), TextEncoder(width=8, depth=1, heads=1, tokenizer=merges)
    assert merged.options["vocabulary"] == len(merged.embed.weight) <= 300
    for text in (*TEXTS, "x", "\U0001f3a5 ß ñ"):
        ids = bytes_only.tokenize([text])[0]
        assert len(ids) == len(" ".join(["", text.lower()]).encode()) + 1 and int(ids.max()) <= 256
        ids = merged.tokenize([text])[0].tolist()
        assert _decoded(merged, ids) == f" {text.lower()}"
    assert merged.tokenize(TEXTS[:1]).shape[1] < bytes_only.tokenize(TEXTS[:1]).shape[1] / 2
    padded = merged.tokenize(["a red square", "a"])
    assert padded[1, 2:].tolist() == [NO_TOKEN] * (padded.shape[1] - 2)


def _decoded(encoder: TextEncoder, ids: list[int]) -> str:
    """The text of tokens: each character stands for a byte, as GPT-2's table has it."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    back = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    words = [encoder._tokenizer.id_to_token(number) for number in ids[:-1]]
    return bytes(back[character] for word in words for character in word).decode()


def test_a_long_text_is_cut_and_that_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    model = small("video_text_tiny", text={"width": 16, "depth": 1, "heads": 2, "context": 12})
    ids = model.tokenize(["abcdefghijklmnop", "abc"])
    assert ids.shape == (2, 12) and int(ids[0, -1]) == 0  # the end token stays
    model.embed_text(["abcdefghijklmnopqrstuvwxyz"])
    assert capsys.readouterr().err == "cut to 12 tokens, as all longer texts: 'abcdefghijklmnop'\n"
    torch.testing.assert_close(model.embed_text(["abcdefghij"]), model.embed_text(["abcdefghij and more"]))


def test_pools_at_their_beginning() -> None:
    frame = torch.randn(2, 1, 24)
    tokens = torch.randn(2, 12, 24)
    pool = TemporalPool(24, 4, 2)
    for name, parameter in pool.named_parameters():
        torch.nn.init.zeros_(parameter) if name == "add.weight" else torch.nn.init.normal_(parameter)
    torch.testing.assert_close(pool(tokens, 4), tokens.mean(dim=1), rtol=1e-5, atol=1e-6)
    attention = AttentionPool(24, 4)
    randomise(attention)
    torch.testing.assert_close(attention(frame.expand(-1, 5, -1), 5), attention(frame, 1))  # of equal frames: the frame's


@pytest.mark.parametrize("name", ["clip_base_32", "video_text_tiny"])
def test_temporal_pooling_begins_as_mean_pooling_and_then_sees_order(name: str) -> None:
    torch.manual_seed(0)
    mean, temporal = small(name).eval(), small(name, pool="temporal").eval()
    temporal.load_state_dict({**temporal.state_dict(), **mean.state_dict()})
    frames = clips(mean.spec)
    with torch.no_grad():
        torch.testing.assert_close(temporal(frames)["embedding"], mean(frames)["embedding"], rtol=1e-4, atol=1e-6)
        torch.nn.init.normal_(temporal.pool.add.weight)
        assert float((temporal(frames)["embedding"] - mean(frames)["embedding"]).abs().max()) > 1e-3
    if name == "clip_base_32":  # a mean of frames knows no order, the transformer does
        with torch.no_grad():
            torch.testing.assert_close(mean(frames.flip(1))["embedding"], mean(frames)["embedding"])
            assert float((temporal(frames.flip(1))["embedding"] - temporal(frames)["embedding"]).abs().max()) > 1e-3


def test_mean_pooling_of_equal_frames_is_the_frame() -> None:
    model = small("clip_base_32").eval()
    randomise(model)
    frame = clips(model.spec)[:, :1]
    with torch.no_grad():
        torch.testing.assert_close(model(frame.expand(-1, 4, -1, -1, -1))["embedding"], model(frame)["embedding"])


@pytest.mark.parametrize("video", ["vivit_base", "mvit_small", "c3d", "cnn_lstm_resnet18", "r2plus1d_18", "vjepa2_large"])
def test_any_family_can_be_the_video_tower(video: str) -> None:
    known = models.variants()
    video = video if video in known else next(name for name in known if name.startswith(video.split("_")[0]))
    family = known[video].__name__.rpartition(".")[2]
    spec, options = SMALL.get(video) or SMALL[family]
    text = dict(width=16, depth=1, heads=2)
    for pool in ("mean", "temporal", "attention") if video != "c3d" else ("mean",):
        model = models.build("video_text_tiny", spec, video=video, video_options=options, text=text, width=12, pool=pool)
        out = model.eval()(clips(spec), text=model.tokenize(TEXTS[:2]))
        assert out["embedding"].shape == out["text"].shape == (2, 12)
        assert out["scale"].shape == () and float(out["scale"].detach()) == pytest.approx(1 / 0.07, rel=1e-4)


def test_scale_is_clamped_and_options_that_make_no_sense_are_refused() -> None:
    model = small("video_text_tiny")
    with torch.no_grad():
        model.log_scale.fill_(9.0)
    assert float(model(clips(SPEC), text=model.tokenize(TEXTS[:2]))["scale"].detach()) == 100
    for options, said in [
        ({"temperature": 0.001}, "temperature is 0.001: it must be 0.01 or more"),
        ({"pool": "temporl"}, "unknown pool 'temporl': did you mean 'temporal'"),
        ({"pool": "attention", "pool_heads": 5}, "pool_heads is 5, which does not divide the video tower's width 24"),
        ({"freeze": "vido"}, "unknown freeze 'vido': did you mean 'video'"),
        ({"video": "video_text_small"}, "name a video model"),
        ({"text": {"width": 16, "depth": 1, "heads": 2, "context": 1}}, r"text\.context is 1"),
    ]:
        with pytest.raises(ConfigError, match=said):
            small("video_text_tiny", **options)
    with pytest.raises(ConfigError, match="text 2 of 2 is empty"):
        model.embed_text(["a", " \n"])
    for silent in (small("video_text_tiny", ("a", "b")), small("videomae_tiny")):
        with pytest.raises(ConfigError, match="reads no text"):
            silent.embed_text(["a"])


@pytest.mark.parametrize(("freeze", "still"), [("video", ("video.",)), ("text", ("text.",)), ("both", ("video.", "text."))])
def test_frozen_towers_learn_nothing_and_stay_in_evaluation_mode(freeze: str, still: tuple[str, ...]) -> None:
    model = small("video_text_tiny", freeze=freeze)
    for switch in (model.train, lambda: training_mode(model)):
        switch()
        assert model.training and all(not getattr(model, name.rstrip(".")).training for name in still)
    out = model(clips(SPEC), text=model.tokenize(TEXTS[:2]))
    (out["scale"] * out["embedding"] @ out["text"].T).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith(still))
        if name.startswith(("project", "log_scale")):
            assert parameter.grad is not None and bool(parameter.grad.any()), name


def test_the_video_tower_can_be_masked_inside() -> None:
    model = small("video_text_tiny").eval()
    tower = model.video
    assert (model.grid, model.tubelet, model.decoder) == (tower.grid, tower.tubelet, tower.decoder)
    mask = torch.zeros(2, 32, dtype=torch.bool)
    mask[:, ::2] = True
    decoder_mask = ~mask
    with torch.no_grad():
        ours = model(clips(SPEC), mask=mask, decoder_mask=decoder_mask)
        theirs = tower(clips(SPEC), mask=mask, decoder_mask=decoder_mask)
    assert ours.keys() == theirs.keys() and torch.equal(ours["prediction"], theirs["prediction"])
    assert not hasattr(small("clip_base_32"), "grid")


def same_but_for(state: dict[str, Tensor], other: dict[str, Tensor], prefix: str) -> bool:
    return all(torch.equal(value, other[f"{prefix}{name}"]) for name, value in state.items() if f"{prefix}{name}" in other)


def test_a_video_model_starts_the_video_tower_and_a_classifier_takes_no_text(tmp_path: Path) -> None:
    source = models.build("videomae_tiny", SPEC, **VIDEO)
    options = {"video_options": {**VIDEO, "decoder": False}}
    target = small("video_text_tiny", **options)
    fresh = transfer(source, target)
    assert same_but_for(source.state_dict(), target.state_dict(), "video.")
    assert fresh == [name for name in target.state_dict() if not name.startswith("video.")]
    classifier = small("video_text_tiny", ("a", "b"))
    assert transfer(target, classifier) == ["head.weight", "head.bias"]
    assert torch.equal(classifier.project.weight, target.project.weight)
    with pytest.raises(CheckpointError, match="the weights are of timesformer_base"):
        transfer(small("timesformer_base"), target)

    merges = train_merges(TEXTS, 280)
    model = small("video_text_tiny", text={"width": 16, "depth": 2, "heads": 2, "tokenizer": merges}).eval()
    save(model, tmp_path / "model")
    back = load_model(tmp_path / "model")
    assert back.options["text"]["tokenizer"] == merges and fingerprint(back) == fingerprint(model)
    assert torch.equal(back.embed_text(TEXTS), model.embed_text(TEXTS))


def test_a_file_and_a_sentence_meet(tmp_path: Path) -> None:
    model = small("video_text_tiny").eval()
    write_video(tmp_path / "a.mp4", clips(SPEC, 1)[0].repeat_interleave(4, dim=0))
    vector = embed_video(model, tmp_path / "a.mp4", clips=1)
    assert vector.shape == model.embed_text(["a"])[0].shape and float(vector.norm()) == pytest.approx(1, abs=1e-5)
