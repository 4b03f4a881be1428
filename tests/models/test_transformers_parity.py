"""VideoMAE against transformers' on the same random weights, both ways."""

import pytest
import torch
from torch import Tensor

from tubelet import masking
from tubelet.models import videomae
from tubelet.objectives import masked
from tubelet.records import ClipSpec
from tubelet.video.normalize import normalize

transformers = pytest.importorskip("transformers", reason="transformers (extra [hf]) is not installed")

SPEC = ClipSpec(frames=8, size=32)
SIZES = dict(width=48, depth=3, heads=3, decoder_width=24, decoder_depth=2, decoder_heads=3, patch=8)


def theirs_config(**changes: object) -> object:
    return transformers.VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=8, tubelet_size=2, hidden_size=48, num_hidden_layers=3,
        num_attention_heads=3, intermediate_size=192, decoder_hidden_size=24, decoder_num_hidden_layers=2,
        decoder_num_attention_heads=3, decoder_intermediate_size=96, **changes,
    )  # fmt: skip


def randomise(model: torch.nn.Module) -> None:
    """Random values everywhere, biases and norms too, so that no swapped or forgotten weight can hide."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def clips() -> Tensor:
    return torch.randint(0, 256, (2, 8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def pixel_values(frames: Tensor) -> Tensor:
    return normalize(frames, SPEC.mean, SPEC.std, colour_dim=2)


def on_disk(model: torch.nn.Module, folder: object) -> dict[str, Tensor]:
    """The state dict as transformers writes it to a file."""
    from safetensors.torch import load_file

    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("layout", ["memory", "disk"])
def test_pretraining_logits_and_loss(layout: str, tmp_path) -> None:
    theirs = transformers.VideoMAEForPreTraining(theirs_config(use_mean_pooling=False, norm_pix_loss=True)).eval()
    randomise(theirs)
    state = theirs.state_dict() if layout == "memory" else on_disk(theirs, tmp_path)
    # transformers' eps: 1e-12 in blocks and encoder norm, 1e-5 in the decoder's norm
    ours = videomae.build("videomae_tiny", SPEC, **SIZES, eps=1e-12, norm_eps=1e-12, decoder_norm_eps=1e-5)
    ours.load_state_dict(videomae.from_huggingface(state))
    mask = masking.make("tube", ours.grid, 0.75, 2, torch.Generator().manual_seed(2))
    frames = clips()
    with torch.no_grad():
        wanted = theirs(pixel_values(frames), bool_masked_pos=mask)
        out = ours(frames, mask=mask)
        loss = masked.distances(
            out["prediction"], masked.target(frames, masked.places(mask).predicted, ours.tubelet, True), masked.MaskedConfig()
        )
    torch.testing.assert_close(out["prediction"], wanted.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss.mean(), wanted.loss, rtol=1e-5, atol=1e-5)


def test_encoder_tokens() -> None:
    theirs = transformers.VideoMAEModel(theirs_config(use_mean_pooling=False)).eval()
    randomise(theirs)
    ours = videomae.build("videomae_tiny", SPEC, **SIZES, eps=1e-12, norm_eps=1e-12, decoder=False)
    ours.load_state_dict(videomae.from_huggingface({f"videomae.{key}": value for key, value in theirs.state_dict().items()}))
    frames = clips()
    with torch.no_grad():
        wanted = theirs(pixel_values(frames)).last_hidden_state
        torch.testing.assert_close(ours(frames)["tokens"], wanted, rtol=1e-5, atol=1e-5)


def classifier_pair() -> tuple[videomae.VideoMAE, torch.nn.Module]:
    theirs = transformers.VideoMAEForVideoClassification(theirs_config(use_mean_pooling=True, num_labels=5)).eval()
    ours = videomae.build("videomae_tiny", SPEC, list("abcde"), **SIZES, eps=1e-12, norm_eps=theirs.fc_norm.eps)
    return ours, theirs


def test_classifier_logits_from_theirs() -> None:
    ours, theirs = classifier_pair()
    randomise(theirs)
    ours.load_state_dict(videomae.from_huggingface(theirs.state_dict()))
    with torch.no_grad():
        frames = clips()
        torch.testing.assert_close(ours(frames)["logits"], theirs(pixel_values(frames)).logits, rtol=1e-5, atol=1e-5)


def test_classifier_logits_from_ours(tmp_path) -> None:
    """Our weights in their folder, read by their own loader."""
    from safetensors.torch import save_file

    ours, theirs = classifier_pair()
    randomise(ours)
    theirs.save_pretrained(tmp_path)
    written = videomae.to_huggingface(ours.state_dict(), ours.tubelet)
    save_file({key: value.contiguous() for key, value in written.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    theirs = transformers.VideoMAEForVideoClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        frames = clips()
        torch.testing.assert_close(ours(frames)["logits"], theirs(pixel_values(frames)).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("classes", [(), tuple("abcde")], ids=["pretraining", "classifier"])
def test_huggingface_round_trip_is_bit_identical(classes: tuple[str, ...]) -> None:
    ours = videomae.build("videomae_tiny", SPEC, classes, **SIZES)
    randomise(ours)
    state = ours.state_dict()
    back = videomae.from_huggingface(videomae.to_huggingface(state, ours.tubelet))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_two_blocks_of_the_giant_from_theirs() -> None:
    """VideoMAE V2's sizes: patches of 14, an MLP 48/11 as wide, a narrow decoder; here of two blocks and 28x28 pixels."""
    spec = ClipSpec(frames=4, size=28)
    config = transformers.VideoMAEConfig(
        image_size=28, patch_size=14, num_frames=4, tubelet_size=2, hidden_size=1408, num_hidden_layers=2,
        num_attention_heads=16, intermediate_size=6144, decoder_hidden_size=512, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=8, decoder_intermediate_size=2234, use_mean_pooling=False,
    )  # fmt: skip
    theirs = transformers.VideoMAEForPreTraining(config).eval()
    randomise(theirs)
    options = dict(depth=2, decoder_depth=1, eps=1e-12, norm_eps=1e-12, decoder_norm_eps=1e-5)
    ours = videomae.build("videomae_giant", spec, **options)
    state = videomae.from_huggingface(theirs.state_dict())
    ours.load_state_dict(state)
    mask = torch.tensor([[False, True, False, True] * 2])
    frames = torch.randint(0, 256, (1, 4, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = theirs(pixel_values(frames), bool_masked_pos=mask).logits
        got = ours(frames, mask=mask)["prediction"]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())
    for to, back in ((videomae.to_original, videomae.from_original), (videomae.to_huggingface, videomae.from_huggingface)):
        again = back(to(state, ours.tubelet))
        assert again.keys() == state.keys() and all(torch.equal(again[key], state[key]) for key in state)
