"""Several objectives in one run: each alone is its own run bit for bit, and the log says what each does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tubelet.errors import ConfigError
from tubelet.objectives import combined
from tubelet.objectives.combined import CombinedConfig
from tubelet.recipes import pretraining
from tubelet.seeds import generator_for
from tubelet.train.config import TrainConfig
from tubelet.train.loop import Run, train
from tubelet.weights.load import load_model

from .conftest import SMALL

Make = Callable[..., TrainConfig]
TERMS = ("masked", "contrastive", "next_token")


@pytest.fixture
def make(motion_folder: Path, tmp_path: Path) -> Make:
    """Makes the configuration of a run of 6 steps on captioned videos, with two towers."""
    table = tmp_path / "captions.csv"
    rows = [f"{path},{path.parent.name} number {path.stem}\n" for path in sorted(motion_folder.rglob("*.mp4"))]
    table.write_text("path,text\n" + "".join(rows))

    def configuration(name: str, **settings: Any) -> TrainConfig:
        towers = {"video_options": SMALL["model.options"], "text": {"width": 16, "depth": 1, "heads": 2}}
        small = {"model.name": "video_text_tiny", "model.options": towers, "optim.steps": 6, "run.validations": 1}
        dotted = {key.replace("__", "."): value for key, value in settings.items()}
        return pretraining([str(table)], str(tmp_path / name), {**SMALL, **small, **dotted})

    return configuration


def weights(run: Path) -> dict[str, Tensor]:
    return load_model(run).state_dict()


def log(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def words(section: str) -> dict[str, int]:
    return {f"{section}__vocabulary": 16, f"{section}__samples": 200}


@pytest.mark.parametrize("term", TERMS)
def test_one_term_alone_is_its_own_run_bit_for_bit(term: str, make: Make) -> None:
    own = train(make("own", objective=term, **words("next_token")))
    lambdas = {f"combined__{name}_weight": float(name == term) for name in TERMS}
    among = train(make("among", objective="combined", **lambdas, **words("combined__next_token")))
    first, second = weights(own), weights(among)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for entry, other in zip(log(own), log(among), strict=True):
        assert entry["loss"] == other["loss"] == other[f"{term}_loss"]
        assert entry.get("val_loss") == other.get("val_loss")
        assert entry["gradient_norm"] == other["gradient_norm"]
        assert not any(name.startswith("gradient_norm_") for name in other)  # of one term the norm is there already
        assert not any(f"{name}_loss" in other for name in TERMS if name != term)


def test_all_three_share_the_encoder_and_are_in_the_log(make: Make) -> None:
    settings = {"combined__masked_weight": 2.0, "combined__contrastive_weight": 0.5, **words("combined__next_token")}
    run = train(make("all", objective="combined", optim__accumulate=2, **settings))
    for entry in log(run):
        parts = [entry[f"{name}_loss"] * weight for name, weight in zip(TERMS, (2.0, 0.5, 1.0), strict=True)]
        assert entry["loss"] == pytest.approx(sum(parts), rel=1e-5)
        assert all(entry[f"gradient_norm_{name}"] > 0 for name in TERMS)
        assert {"temperature", "token_accuracy", "recall_at_1"} <= entry.keys()
    model = load_model(run)
    assert model.video.decoder is not None and model.video.vocabulary.codebook.any()  # type: ignore[union-attr]


def test_a_terms_gradient_is_that_of_the_encoder_and_leaves_no_trace(make: Make) -> None:
    settings = {"combined__contrastive_weight": 1.0, "combined__masked_weight": 3.0, **words("combined__next_token")}
    run = Run(make("norms", objective="combined", **settings))
    run.spread()
    batch = next(run.loader.batches(0, 1))
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    found = run.gradient_norms(batch, [len(batch.ids)])
    assert all(p.grad is None for p in run.model.parameters())
    assert all(torch.equal(before[name], value) for name, value in run.model.state_dict().items())
    encoder = [
        p for name, p in run.model.named_parameters() if name.startswith(("video.embed.", "video.blocks.", "video.norm."))
    ]
    for name, term in combined.terms(run.model, batch, run.settings, generator_for(0, "objective", 0)).items():
        norm = torch.stack([g.square().sum() for g in torch.autograd.grad(term(), encoder)]).sum().sqrt()
        assert found[f"gradient_norm_{name}"] == pytest.approx(norm.item(), rel=1e-5)


def test_what_is_logged_decides_nothing(make: Make) -> None:
    settings = {"objective": "combined", **words("combined__next_token")}
    often, seldom = (train(make(str(every), run__log_every=every, **settings)) for every in (1, 6))
    assert all(torch.equal(value, weights(seldom)[name]) for name, value in weights(often).items())


def test_a_resumed_run_keeps_its_codebook_and_ends_the_same(pretrain_config: Make) -> None:
    settings = {"objective": "next_token", **words("next_token"), "optim__steps": 6, "run__checkpoint_every": 3}
    whole = train(pretrain_config("whole", **settings))

    def stop(step: int, numbers: object) -> None:
        if step == 4:
            raise KeyboardInterrupt

    config = pretrain_config("broken", **settings)
    with pytest.raises(KeyboardInterrupt):
        train(config, stop)
    first, second = weights(whole), weights(train(config))
    assert first["vocabulary.codebook"].any() and first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_cannot_be_is_said(make: Make, pretrain_config: Make) -> None:
    with pytest.raises(ConfigError, match="every weight of combined is 0: set one of combined.masked_weight"):
        CombinedConfig(masked_weight=0, next_token_weight=0)
    with pytest.raises(ConfigError, match=r"combined.masked_weight is -1: it must be 0 \(off\) or more"):
        CombinedConfig(masked_weight=-1)
    with pytest.raises(ConfigError, match="reads no text"):
        train(make("bare", objective="combined", combined__contrastive_weight=1.0, model__name="videomae_tiny",
                   model__options=SMALL["model.options"], **words("combined__next_token")))  # fmt: skip
    with pytest.raises(ConfigError, match="mvitv2_small has no vocabulary of tokens: pretrain a videomae model"):
        tiny = {"width": 16, "heads": 2, "blocks": [1, 2], "kv_stride": 2}
        train(pretrain_config("mvit", objective="next_token", model__name="mvitv2_small", model__options=tiny))
