"""AdamW with the usual weight-decay rule, layer-wise learning rates, cosine schedule, moving average of the weights."""

import math

import torch
from torch import Tensor

from tubelet.errors import ConfigError
from tubelet.models._model import Model
from tubelet.train import parallel
from tubelet.train.config import OptimConfig


def peak_lr(config: OptimConfig, clips_per_step: int) -> float:
    """The highest learning rate: `lr`, or base_lr x effective batch / 256 (the linear rule of arXiv 1706.02677)."""
    return config.base_lr * clips_per_step / 256 if config.lr is None else config.lr


def lr_at(step: int, steps: int, warmup_steps: int, peak: float, lowest: float) -> float:
    """Learning rate of step 0..steps-1: linear from peak/warmup_steps up to the peak, then half a cosine down to `lowest`.

    `lowest` is reached after the last step, and never lies above the peak.
    """
    if step < warmup_steps:
        return peak * ((step + 1) / warmup_steps)
    lowest = min(lowest, peak)
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return lowest + (peak - lowest) * (1 + math.cos(math.pi * progress)) / 2


def total_steps(config: OptimConfig, steps_per_epoch: float) -> int:
    """Steps of the whole run: `steps`, or `epochs` in which every video is decoded once. At least 1."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    return max(1, math.ceil(config.epochs * steps_per_epoch - 1e-9))


def warmup_steps(text: str, steps: int, steps_per_epoch: float) -> int:
    """Steps of warm-up meant by "5%", "10 epochs", "100 steps" or "100"; ConfigError for anything else."""
    words = text.replace("%", " % ").split()
    try:
        number = float(words[0])
        unit = words[1].rstrip("s") if len(words) > 1 else "step"
        scale = {"%": steps / 100, "epoch": steps_per_epoch, "step": 1.0}[unit]
        if number < 0 or len(words) > 2:
            raise ValueError
    except (ValueError, KeyError, IndexError) as error:
        raise ConfigError(f"optim.warmup is {text!r}: expected for example '5%', '10 epochs' or '100 steps'") from error
    warm = round(number * scale)
    if warm >= steps and warm > 1:
        raise ConfigError(
            f"optim.warmup is {text!r}, which is {warm} steps of a run of {steps}: make it shorter, for example '5%'"
        )
    return warm


def freeze_all_but_head(model: Model) -> int:
    """Freeze everything but the head; gives the number of parameters that stay trainable."""
    head = model.head_parameters()
    if not head:
        raise ConfigError(f"optim.freeze is set, but {model.name} has no head to train: it needs classes")
    model.requires_grad_(False)
    for parameter in head:
        parameter.requires_grad_(True)
    return sum(parameter.numel() for parameter in head)


def training_mode(model: Model) -> None:
    """Put the model in training mode, but for the parts of which nothing is trained: a frozen body drops no path."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def groups(model: Model, weight_decay: float, layer_decay: float) -> list[dict[str, object]]:
    """Parameter groups of the trainable parameters: `params`, `weight_decay`, `lr_scale`, `names`.

    No decay for biases, norms and other vectors, nor for mask and cls tokens and learned positions. Layer d of `depth` + 2
    (0 the embedding, depth + 1 what follows the blocks) learns at layer_decay^(depth + 1 - d) of the rate (BEiT, arXiv
    2106.08254).
    """
    found: dict[tuple[bool, int], dict[str, object]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and not name.endswith(("mask_token", "cls_token", "pos_embed", "time_embed", "bias"))
        layers_below_top = model.depth + 1 - model.depth_of(name)
        group = found.setdefault(
            (decays, layers_below_top),
            {
                "params": [],
                "names": [],
                "weight_decay": weight_decay if decays else 0.0,
                "lr_scale": layer_decay**layers_below_top,
            },
        )
        group["params"].append(parameter)  # type: ignore[attr-defined]
        group["names"].append(name)  # type: ignore[attr-defined]
    return list(found.values())


def adamw(model: Model, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW over `groups`; the loop sets the learning rate of every step with `set_lr`."""
    made = groups(model, config.weight_decay, config.layer_decay)
    return torch.optim.AdamW(made, lr=0.0, betas=config.betas, fused=next(model.parameters()).device.type in ("cpu", "cuda"))


def clip(model: Model, largest: float) -> Tensor:
    """The norm of the whole gradient, which is scaled down to `largest` where it is above it (0: never)."""
    gradients = [p for p in model.parameters() if p.grad is not None]
    if largest:
        return parallel.whole(torch.nn.utils.clip_grad_norm_(gradients, largest))
    return parallel.whole(torch.nn.utils.get_total_norm([p.grad for p in gradients if p.grad is not None]))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


@torch.no_grad()
def update_ema(average: dict[str, Tensor], model: Model, decay: float, step: int) -> None:
    """average <- d*average + (1-d)*weights in place, d = min(decay, (1+step)/(10+step)) so that the first values fade early."""
    decay = min(decay, (1 + step) / (10 + step))
    weights = dict(model.named_parameters())
    torch._foreach_lerp_(list(average.values()), [weights[name].detach() for name in average], 1 - decay)
