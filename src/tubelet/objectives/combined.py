"""Several objectives of one encoder at once: lambda1 * masked + lambda2 * contrastive + lambda3 * next-token.

Every term sees the same clips through the same encoder, in passes of their own: masking hides most tokens, next-token prediction
replaces them, a caption needs all of them. A term whose lambda is 0 is not computed, and its part of the model is not built. One
term with lambda 1 is the run of that objective, bit for bit: each draws from the step's generator as if it were alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Generator, Tensor

from tubelet.errors import ConfigError
from tubelet.find import module
from tubelet.models._model import Model
from tubelet.objectives.contrastive import ContrastiveConfig
from tubelet.objectives.masked import MaskedConfig
from tubelet.objectives.next_token import NextTokenConfig
from tubelet.records import Batch

NEEDS_LABELS = False
TERMS = ("masked", "contrastive", "next_token")


@dataclass(frozen=True)
class CombinedConfig:
    """How much each loss counts, and its own settings.

    masked_weight, contrastive_weight, next_token_weight  the lambdas; a term with 0 is not computed. The contrastive one needs
                                                          captions and a model that reads them, such as video_text_tiny
    masked, contrastive, next_token                       settings of the terms, as of the objectives of the same names
    """

    masked_weight: float = 1.0
    contrastive_weight: float = 0.0
    next_token_weight: float = 1.0
    masked: MaskedConfig = field(default_factory=MaskedConfig)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    next_token: NextTokenConfig = field(default_factory=NextTokenConfig)

    def __post_init__(self) -> None:
        for name in TERMS:
            if getattr(self, f"{name}_weight") < 0:
                raise ConfigError(f"combined.{name}_weight is {getattr(self, f'{name}_weight')}: it must be 0 (off) or more")
        if not weights(self):
            raise ConfigError(
                f"every weight of combined is 0: set one of {', '.join(f'combined.{name}_weight' for name in TERMS)}"
            )


Config = CombinedConfig


def NEEDS_TEXT(config: CombinedConfig) -> bool:
    """Whether a term that is computed reads captions."""
    return any(getattr(_objective(name), "NEEDS_TEXT", False) for name in weights(config))


def weights(config: CombinedConfig) -> dict[str, float]:
    """The terms that are computed, and their lambdas."""
    found = {name: getattr(config, f"{name}_weight") for name in TERMS}
    return {name: weight for name, weight in found.items() if weight}


def options(config: CombinedConfig) -> dict[str, Any]:
    """What a model needs for the terms that are computed."""
    needed: dict[str, Any] = {}
    for name in weights(config):
        own = _objective(name)
        needed |= own.options(getattr(config, name)) if hasattr(own, "options") else {}
    return needed | ({"decoder": True} if config.masked_weight else {})


def prepare(model: Model, clips: Any, config: CombinedConfig, generator: Generator) -> None:
    """What the terms learn before the first step."""
    for name in weights(config):
        own = _objective(name)
        if hasattr(own, "prepare"):
            own.prepare(model, clips, getattr(config, name), generator.clone_state())


def loss(model: Model, batch: Batch, config: CombinedConfig, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum, and {"<term>_loss": not weighted} beside the numbers of each term."""
    total: Tensor | None = None
    numbers: dict[str, Tensor] = {}
    for name, weight in weights(config).items():
        value, more = _objective(name).loss(model, batch, getattr(config, name), generator.clone_state())
        numbers |= {f"{name}_loss": value.detach(), **more}
        total = weight * value if total is None else total + weight * value
    assert total is not None
    return total, numbers


def measure(model: Model, batch: Batch, config: CombinedConfig, generator: Generator) -> dict[str, Tensor]:
    """{"loss": (B,) the weighted sum, "<term>_loss": (B,)} beside the numbers of each term."""
    numbers: dict[str, Tensor] = {}
    for name in weights(config):
        found = _objective(name).measure(model, batch, getattr(config, name), generator.clone_state())
        numbers |= {f"{name}_loss": found.pop("loss"), **found}
    terms = [weight * numbers[f"{name}_loss"] for name, weight in weights(config).items()]
    return {"loss": sum(terms[1:], start=terms[0]), **numbers}


def terms(model: Model, batch: Batch, config: CombinedConfig, generator: Generator) -> dict[str, Callable[[], Tensor]]:
    """What computes each weighted loss alone: the loop asks for their gradients now and then."""

    def term(name: str, weight: float) -> Tensor:
        value: Tensor = _objective(name).loss(model, batch, getattr(config, name), generator.clone_state())[0]
        return weight * value

    return {name: partial(term, name, weight) for name, weight in weights(config).items()}


def _objective(name: str) -> Any:
    return module("tubelet.objectives", name)
