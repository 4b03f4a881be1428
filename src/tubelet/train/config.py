"""A whole run as one frozen value: what is in config.yaml, what recipes return, what dotted flags change.

An unknown setting is an error that names the nearest one; a value of the wrong type says what was wanted.
"""

import copy
import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from tubelet import find
from tubelet.errors import ConfigError
from tubelet.loading import LoaderConfig
from tubelet.objectives.classify import ClassifyConfig
from tubelet.objectives.combined import CombinedConfig
from tubelet.objectives.contrastive import ContrastiveConfig
from tubelet.objectives.distill import DistillConfig
from tubelet.objectives.masked import MaskedConfig
from tubelet.objectives.next_token import NextTokenConfig
from tubelet.records import ClipSpec
from tubelet.video.augment import AugmentConfig

T = TypeVar("T")


@dataclass(frozen=True)
class DataConfig:
    """Which videos are learned from, and which are held out.

    train         folders or tables
    val           other folders or tables that are only validated on (then nothing is split off)
    format        name of a reader, or "auto"
    train_split   name of the split to learn from, where the data set has splits
    val_split     name of the split to validate on
    val_fraction  share held out, by group, where nothing else says what to hold out
    split_seed    decides which those are
    unseen_labels what to do with held-out videos of a class that training never sees: "error" stops, "drop" leaves them out
    limit         learn from at most this many videos, chosen by split_seed; None takes all
    """

    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    format: str = "auto"
    train_split: str | None = None
    val_split: str | None = None
    val_fraction: float = 0.2
    split_seed: int = 0
    unseen_labels: Literal["error", "drop"] = "error"
    limit: int | None = None


@dataclass(frozen=True)
class ModelConfig:
    """Name of a variant (`tubelet models` lists them) and options that override its sizes, e.g. depth, patch, drop_path."""

    name: str = "videomae_small"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, its schedule and what is averaged.

    base_lr        learning rate per 256 clips of effective batch (batch_size x accumulate)
    lr             the learning rate itself, in place of base_lr
    min_lr         where the cosine ends
    epochs, steps  length of the run; steps, where given, take the place of epochs. An epoch shows every video once,
                   `repeats` clips of it at a time
    warmup         "5%" of the run, "10 epochs" or "100 steps" of linear warm-up
    clip_gradient  largest gradient norm; 0 does not clip
    accumulate     batches whose gradients make one step
    layer_decay    learning rate of each layer relative to the one above it; 1 treats all alike
    ema            decay of the exponential moving average of the weights, which then is the result; 0 keeps none
    freeze         train only the head
    """

    base_lr: float = 1.5e-4
    lr: float | None = None
    min_lr: float = 1e-6
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    epochs: float | None = 100
    steps: int | None = None
    warmup: str = "5%"
    clip_gradient: float = 0.0
    accumulate: int = 1
    layer_decay: float = 1.0
    ema: float = 0.0
    freeze: bool = False

    def __post_init__(self) -> None:
        if self.epochs is None and self.steps is None:
            raise ConfigError("the run has no length: set optim.epochs or optim.steps")
        if self.steps is not None:  # so that no configuration names two lengths
            object.__setattr__(self, "epochs", None)
        for name, low in (("base_lr", 0), ("min_lr", 0), ("weight_decay", 0), ("clip_gradient", 0), ("accumulate", 1)):
            if not getattr(self, name) >= low:  # so that nan is none either
                raise ConfigError(f"optim.{name} is {getattr(self, name)}: it must be {low} or more")
        for name in ("lr", "epochs", "steps"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"optim.{name} is {getattr(self, name)}: it must be above 0, and finite")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"optim.layer_decay is {self.layer_decay}: it must be above 0, and 1 treats all layers alike")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"optim.ema is {self.ema}: it must be 0 (off) or below 1, for example 0.999")


CompileMode = Literal["reduce-overhead", "max-autotune"]


@dataclass(frozen=True)
class RunConfig:
    """How the run is carried out.

    seed              every random choice follows from it
    device            "auto", "cpu", "cuda", "cuda:1", "mps"
    precision         "fp32", "bf16" (autocast; weights, residual and norms stay float32) or "auto": bf16 on a GPU that has it
    threads           of torch on a CPU; None: one per core. A model of under 0.1 GMAC a clip is faster with 1: between its short
                      products several threads wait for each other, and for the cores that the loader uses
    deterministic     bit-identical repeats on a GPU too, at some cost in speed
    compile           torch.compile the model: true, or a mode of it. "reduce-overhead" replays CUDA graphs, which helps where
                      a step is many short kernels; "max-autotune" does so too and times several kernels for every product, once
    parallel          how several processes divide the model: "ddp" each holds all of it, "fsdp" each holds a part (FSDP2); "auto":
                      "fsdp" where the training state would take over a quarter of a GPU
    recompute         keep only the inputs of blocks for the backward pass and compute the rest again (activation
                      checkpointing): less memory, about a third slower
    checkpoint_every  steps between checkpoints; 0 makes one every three minutes
    keep_checkpoints  how many of the newest are kept
    log_every         steps between lines of log.jsonl
    validations       how often the held-out videos are looked at, spread evenly over the run; 0 never
    tensorboard       write TensorBoard events too
    report            draw report.html at the end
    """

    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int | None = None
    deterministic: bool = True
    compile: bool | CompileMode = False
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    recompute: bool = False
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    log_every: int = 10
    validations: int = 10
    tensorboard: bool = False
    report: bool = True

    def __post_init__(self) -> None:
        for name, low in (("checkpoint_every", 0), ("keep_checkpoints", 1), ("log_every", 1), ("validations", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"run.{name} is {getattr(self, name)}: it must be {low} or more")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"run.threads is {self.threads}: it must be 1 or more; leave it out for one per core")


@dataclass(frozen=True)
class TrainConfig:
    """A whole run. The section named like the objective holds its settings; `init` is a model to start from, `init_text` a folder
    with a CLIP or sentence-embedding model (transformers' layout) that the text tower starts from, `init_flow` torchvision's
    file of the RAFT within a two-stream model."""

    out: str
    objective: str = "masked"
    init: str | None = None
    init_text: str | None = None
    init_flow: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    clip: ClipSpec = field(default_factory=ClipSpec)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loader: LoaderConfig = field(default_factory=lambda: LoaderConfig(batch_size=32))
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    masked: MaskedConfig = field(default_factory=MaskedConfig)
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    next_token: NextTokenConfig = field(default_factory=NextTokenConfig)
    combined: CombinedConfig = field(default_factory=CombinedConfig)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        find.choose(self.objective, find.names("tubelet.objectives"), "objective")

    @property
    def clips_per_step(self) -> int:
        """The effective batch."""
        return self.loader.batch_size * self.optim.accumulate

    def to_yaml(self) -> str:
        """What config.yaml holds: every setting."""
        return yaml.safe_dump(to_dict(self), sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, path: str | Path) -> "TrainConfig":
        """The whole run in a config.yaml; ConfigError where it cannot be read or has an unknown setting."""
        return from_dict(cls, read_yaml(path))


# May change between a run and its continuation: none of these decides what is learned.
FREE = ("out", "loader.workers", "run.device", "run.parallel", "run.recompute", "run.checkpoint_every", "run.keep_checkpoints",
        "run.log_every", "run.validations", "run.tensorboard", "run.report")  # fmt: skip


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain dicts, lists and scalars."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError where it is missing or is none."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the settings in {path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no settings: expected lines like `optim:` and below it `  epochs: 100`")
    return values


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """A config dataclass from nested mappings; what is absent keeps its default. ConfigError names any unknown setting."""
    kinds = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise ConfigError(unknown_setting(f"{where}{name}"))
    missing = [f.name for f in dataclasses.fields(cls)  # type: ignore[arg-type]
               if f.default is f.default_factory is dataclasses.MISSING and f.name not in values]  # fmt: skip
    if missing:
        raise ConfigError(f"setting {where}{missing[0]} is needed")
    return cls(**{name: read_value(kinds[name], value, f"{where}{name}") for name, value in values.items()})


def with_settings(config: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """The config with dotted settings changed, e.g. {"optim.base_lr": "1e-3"}; a text is read as YAML where no text is wanted."""
    values = to_dict(config)
    known = setting_names()
    for name, value in over({}, settings).items():
        open_ended = name.startswith("model.options.")
        if name not in known and not open_ended:
            raise ConfigError(unknown_setting(name))
        *path, last = name.split(".")
        inner = values
        for part in path:
            inner = inner[part]
        inner[last] = yaml.safe_load(value) if open_ended and isinstance(value, str) else copy.deepcopy(value)
    return from_dict(TrainConfig, values)


def over(settings: Mapping[str, Any], stronger: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted settings with stronger ones on top. A length in epochs also ends one in steps, which would win otherwise."""
    in_epochs = stronger.get("optim.epochs") not in (None, "none", "null") and "optim.steps" not in stronger
    return {**settings, **({"optim.steps": None} if in_epochs else {}), **stronger}


def flat(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Nested mappings as {"optim.base_lr": ...}; the model's options stay one mapping each level deeper."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= flat(value, f"{where}{name}.") if isinstance(value, Mapping) else {f"{where}{name}": value}
    return out


def setting_names() -> list[str]:
    """The dotted name of every setting."""
    return [*flat(to_dict(TrainConfig(out=""))), "model.options"]


def unknown_setting(name: str) -> str:
    """What to say about a setting that does not exist: the nearest one, judged by its whole and by its last name."""
    known = setting_names()
    section, _, last = name.rpartition(".")
    inside = [other for other in known if other.startswith(f"{section}.")]
    hint = find.did_you_mean(name, inside or known)
    if not hint:
        hint = find.did_you_mean(last, [other.rpartition(".")[2] for other in known])
    return f"unknown setting {name!r}{hint} (--print-config shows them all)"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """ "optim.base_lr was 0.1, is 0.2" for every setting that differs and matters to what is learned."""
    before, after = flat(old), flat(new)
    names = [name for name in {**before, **after} if name not in FREE and before.get(name) != after.get(name)]
    return [f"{name} was {before.get(name)!r}, is {after.get(name)!r}" for name in names]


def read_value(kind: Any, value: Any, where: str) -> Any:
    """`value` as the type `kind`: from YAML, or from the text of a flag. ConfigError says what was wanted."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is {value!r}: it is a section, expected settings below it")
        return from_dict(kind, value, f"{where}.")
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind == bool | CompileMode:
        words = typing.get_args(CompileMode)
        read = value if value in words else _parsed(value)
        if isinstance(read, bool) or read in words:
            return read
        hint = find.did_you_mean(str(value), words)
        raise ConfigError(f"{where} is {value!r}{hint}, expected true or false, or {' or '.join(map(repr, words))}")
    if origin in (types.UnionType, typing.Union):  # X | None, beside the one above
        if value is None or value in ("none", "null"):
            return None
        return read_value(next(one for one in inner if one is not type(None)), value, where)
    if origin is Literal:
        if isinstance(value, bool):  # what YAML 1.1 makes of a bare `on` or `off`
            value = "on" if value else "off"
        if value not in inner:
            hint = find.did_you_mean(str(value), map(str, inner))
            raise ConfigError(f"{where} is {value!r}{hint}, expected one of {', '.join(map(repr, inner))}")
        return value
    if origin is tuple:
        return _read_tuple(inner, value, where)
    if origin is dict or kind is dict:
        value = _parsed(value)
        if isinstance(value, Mapping):
            return dict(value)
    if kind is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    if kind is str:
        raise ConfigError(f"{where} is {value!r}, expected a text")
    read = _parsed(value)
    if kind is bool and isinstance(read, bool):
        return read
    if kind in (int, float) and not isinstance(read, bool):
        try:
            number = float(read)  # "1e-3" is a text to YAML 1.1
            if kind is float or number.is_integer():
                return kind(number)
        except (TypeError, ValueError, OverflowError):
            pass
    wanted = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "settings")
    raise ConfigError(f"{where} is {value!r}, expected {wanted}")


def _read_tuple(inner: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.strip("[]() ").split(",")] if value else []
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where} is {value!r}, expected a list")
    if inner[-1] is Ellipsis:
        return tuple(read_value(inner[0], one, where) for one in value)
    if len(value) != len(inner):
        raise ConfigError(f"{where} is {value!r}, expected {len(inner)} values")
    return tuple(read_value(kind, one, where) for kind, one in zip(inner, value, strict=True))


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
