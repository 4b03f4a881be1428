"""Schedule, parameter groups and moving average against independent formulas and torch's own AdamW."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tubelet import models
from tubelet.errors import ConfigError
from tubelet.records import ClipSpec
from tubelet.train import optim
from tubelet.train.config import OptimConfig

SPEC = ClipSpec(frames=4, size=32, stride_frames=1)
SMALL = dict(width=32, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2, patch=8)


def test_schedule_is_torchs_linear_then_cosine() -> None:
    """Against LinearLR and CosineAnnealingLR of torch, one after the other."""
    weight = nn.Parameter(torch.zeros(1))
    reference = torch.optim.SGD([weight], lr=0.2)
    warm = torch.optim.lr_scheduler.LinearLR(reference, start_factor=1 / 10, total_iters=9)
    for step in range(10):
        assert optim.lr_at(step, 100, 10, 0.2, 0.01) == pytest.approx(reference.param_groups[0]["lr"])
        reference.step()
        warm.step()
    reference = torch.optim.SGD([weight], lr=0.2)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=90, eta_min=0.01)
    for step in range(10, 100):
        assert optim.lr_at(step, 100, 10, 0.2, 0.01) == pytest.approx(reference.param_groups[0]["lr"])
        reference.step()
        cosine.step()


@given(st.integers(1, 500), st.integers(0, 100), st.floats(1e-6, 1), st.floats(0, 1))
def test_schedule_rises_then_falls_and_stays_in_bounds(steps: int, warmup: int, peak: float, lowest: float) -> None:
    warmup = min(warmup, steps - 1)
    rates = [optim.lr_at(step, steps, warmup, peak, lowest) for step in range(steps)]
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates)
    for step, (before, after) in enumerate(itertools.pairwise(rates)):
        assert after >= before * (1 - 1e-12) if step < warmup else after <= before * (1 + 1e-12)
    assert rates[warmup] == pytest.approx(peak)


def test_learning_rate_scales_with_the_effective_batch() -> None:
    assert optim.peak_lr(OptimConfig(base_lr=1e-3), 64) == pytest.approx(2.5e-4)
    assert optim.peak_lr(OptimConfig(base_lr=1e-3, lr=0.3), 64) == 0.3


@pytest.mark.parametrize(("text", "wanted"), [
    ("5%", 50), ("5 %", 50), ("10 epochs", 200), ("1 epoch", 20), ("0.5 epochs", 10), ("100 steps", 100), ("7", 7), ("0", 0),
])  # fmt: skip
def test_warmup_in_percent_epochs_and_steps(text: str, wanted: int) -> None:
    assert optim.warmup_steps(text, steps=1000, steps_per_epoch=20) == wanted


@pytest.mark.parametrize("text", ["", "ten epochs", "5 minutes", "-1", "5 % more"])
def test_warmup_that_means_nothing(text: str) -> None:
    with pytest.raises(ConfigError, match="expected for example '5%', '10 epochs' or '100 steps'"):
        optim.warmup_steps(text, 1000, 20)


def test_warmup_longer_than_the_run() -> None:
    with pytest.raises(ConfigError, match="which is 200 steps of a run of 100: make it shorter"):
        optim.warmup_steps("200 steps", 100, 20)


def test_length_of_the_run() -> None:
    assert optim.total_steps(OptimConfig(epochs=3), 2.5) == 8
    assert optim.total_steps(OptimConfig(epochs=10), 0.1) == 1
    assert optim.total_steps(OptimConfig(epochs=None, steps=7), 2.5) == 7


def test_every_trained_parameter_is_in_one_group_with_the_right_decay() -> None:
    model = models.build("videomae_tiny", SPEC, **SMALL)
    groups = optim.groups(model, weight_decay=0.05, layer_decay=1.0)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    norms = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    for name in names:
        free = name in norms or name.endswith("bias") or name.endswith("mask_token")
        assert decay[name] == (0.0 if free else 0.05), name


def test_layer_decay() -> None:
    model = models.build("videomae_tiny", SPEC, ["a", "b"], **SMALL)
    scale = {name: g["lr_scale"] for g in optim.groups(model, 0.05, 0.5) for name in g["names"]}
    assert scale["head.weight"] == scale["fc_norm.weight"] == 1.0
    assert scale["blocks.1.mlp.fc1.weight"] == 0.5 and scale["blocks.0.attn.q_bias"] == 0.25
    assert scale["embed.weight"] == 0.125
    optimizer = optim.adamw(model, OptimConfig(layer_decay=0.5))
    optim.set_lr(optimizer, 0.1)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}
    assert rates["embed.bias"] == pytest.approx(0.0125) and rates["head.bias"] == pytest.approx(0.1)


def test_ten_steps_equal_torchs_plain_adamw() -> None:
    """Against unfused torch.optim.AdamW with the usual two groups and its own schedule object."""
    model = models.build("videomae_tiny", SPEC, ["a", "b"], **SMALL)
    twin = copy.deepcopy(model)
    config = OptimConfig(lr=1e-2, weight_decay=0.1, betas=(0.9, 0.99), clip_gradient=0.5)
    ours = optim.adamw(model, config)
    decayed = [p for p in twin.parameters() if p.ndim > 1]
    plain = [p for p in twin.parameters() if p.ndim <= 1]
    theirs = torch.optim.AdamW([{"params": decayed}, {"params": plain, "weight_decay": 0.0}], lr=1e-2, betas=(0.9, 0.99),
                               weight_decay=0.1, fused=False, foreach=False)  # fmt: skip
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, T_max=10)
    for step in range(10):
        frames = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
        for network in (model, twin):
            torch.nn.functional.cross_entropy(network(frames)["logits"], torch.tensor([0, 1])).backward()
        norm = optim.clip(model, 0.5)
        assert norm.item() == pytest.approx(torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5).item(), rel=1e-5)
        optim.set_lr(ours, optim.lr_at(step, 10, 0, 1e-2, 0.0))
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gradient_norm_without_clipping() -> None:
    model = nn.Linear(3, 2)
    model(torch.ones(4, 3)).square().sum().backward()
    wanted = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters() if p.grad is not None))
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert optim.clip(model, 0.0).item() == pytest.approx(wanted, rel=1e-6)
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True) if p.grad is not None)


def test_moving_average_against_its_formula() -> None:
    model = nn.Linear(2, 2)
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    by_hand = model.weight.detach().clone().double()
    for step in range(30):
        with torch.no_grad():
            model.weight += torch.randn(2, 2)
        optim.update_ema(average, model, 0.9, step)
        decay = min(0.9, (1 + step) / (10 + step))
        by_hand = decay * by_hand + (1 - decay) * model.weight.detach().double()
    torch.testing.assert_close(average["weight"].double(), by_hand, rtol=1e-5, atol=1e-6)


def test_freezing_leaves_exactly_the_head() -> None:
    model = models.build("videomae_tiny", SPEC, ["a", "b"], **SMALL)
    assert optim.freeze_all_but_head(model) == 32 * 2 + 2
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}


def test_freezing_a_model_without_a_head() -> None:
    with pytest.raises(ConfigError, match="has no head to train: it needs classes"):
        optim.freeze_all_but_head(models.build("videomae_tiny", SPEC, **SMALL))
