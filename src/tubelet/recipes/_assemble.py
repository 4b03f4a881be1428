"""What a user asked for, on top of the recipe that fits the data and the machine -> one whole configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tubelet import datasets, models
from tubelet.errors import CheckpointError, ConfigError
from tubelet.models._text import train_merges
from tubelet.recipes import compare, finetune, pretrain, video_text
from tubelet.recipes._budget import fitting_stride
from tubelet.records import Dataset
from tubelet.train.config import ModelConfig, TrainConfig, from_dict, read_value, to_dict, with_settings
from tubelet.train.data import absolute
from tubelet.train.data import load as load_data
from tubelet.train.device import choose_device
from tubelet.train.folder import begun
from tubelet.weights import text as text_of_others
from tubelet.weights.load import load_model

# Model options that follow from the clip, not from the size of the model: they survive a change of `model.name`.
KEPT_OPTIONS = ("patch", "tubelet", "drop_path", "positions", "first_values")


def pretraining(data: Sequence[str], out: str, settings: Mapping[str, Any]) -> TrainConfig:
    """The run that `tubelet pretrain DATA` with dotted `settings` stands for.

    A run folder that exists already keeps what its recipe chose, so that the same command continues it. Raises ConfigError
    and DataError.
    """
    paths, out = _where(data, out, settings, "pretrain")
    base = _begun(out)
    if base is None:
        dataset = datasets.read_many(paths, settings.get("data.format", "auto"))
        device = choose_device(settings.get("run.device", "auto")).type
        base = _fitted(pretrain.choose(len(dataset.examples), device)(paths, out, dataset), dataset, settings)
    return _changed(base, paths, out, settings)


def fine_tuning(source: str | None, data: Sequence[str], out: str, settings: Mapping[str, Any]) -> TrainConfig:
    """The run that `tubelet finetune SOURCE DATA` stands for; without a source it starts from random first values."""
    paths, out = _where(data, out, settings, "finetune" if source else "scratch")
    init = str(Path(source).resolve()) if source else None
    if source and not Path(source).exists():
        raise CheckpointError(f"no model at {source}: name a run folder, a model folder or a checkpoint, or `none`")
    base = _begun(out)
    if base is None:
        dataset = datasets.labelled(datasets.read_many(paths, settings.get("data.format", "auto")))
        device = choose_device(settings.get("run.device", "auto")).type
        if source:
            network = load_model(source)
            model, clip = ModelConfig(network.name, dict(network.options)), network.spec
        else:
            twin = _fitted(pretrain.choose(len(dataset.examples), device)(paths, out, dataset), dataset, settings)
            model, clip = ModelConfig(twin.model.name, {**twin.model.options, "drop_path": 0.0}), twin.clip
        base = finetune.choose(len(dataset.examples), device)(paths, out, dataset, model, clip)
        if not source:
            base = finetune.from_random_values(base)
    return _changed(base, paths, out, {"init": init, **settings})


def aligning(source: str | None, data: Sequence[str], out: str, settings: Mapping[str, Any]) -> TrainConfig:
    """The run that `tubelet align SOURCE DATA` stands for; without a source the video tower starts from random first values.

    Where no text tower is given, a tokenizer is learned from the captions of the training videos: it is in the configuration.
    """
    paths, out = _where(data, out, settings, "align")
    init = str(Path(source).resolve()) if source else None
    if source and not Path(source).exists():
        raise CheckpointError(f"no model at {source}: name a run folder, a model folder or a checkpoint, or `none`")
    base = _begun(out)
    if base is not None:
        config = _changed(base, paths, out, {"init": init, **settings})
        options, kept = config.model.options, base.model.options["text"]  # with the tokenizer, which no command gives
        return replace(config, model=replace(config.model, options={**options, "text": {**kept, **options["text"]}}))
    dataset = datasets.read_many(paths, settings.get("data.format", "auto"))
    device = choose_device(settings.get("run.device", "auto")).type
    named = settings.get("model.name")
    if source:
        network = load_model(source)
        model, clip = ModelConfig(network.name, dict(network.options)), network.spec
    else:
        twin = _fitted(pretrain.choose(len(dataset.examples), device)(paths, out, dataset), dataset, settings)
        model, clip = twin.model, twin.clip
        if named and named != model.name:
            model = ModelConfig(named, {})
    if "video" not in models.options_of(model.name):
        model = video_text.towers(model, device)
        settings = {key: value for key, value in settings.items() if key != "model.name"}
    base = video_text.choose(device)(paths, out, dataset, model, clip)
    config = _changed(base, paths, out, {"init": init, **settings})
    if config.contrastive.matching:
        config = replace(config, model=replace(config.model, options={**config.model.options, "matching": True}))
    return config if source and model.name == network.name else _with_text_tower(config)


def _with_text_tower(config: TrainConfig) -> TrainConfig:
    """The run with the text tower of `init_text`, or with a tokenizer of its training captions."""
    options = config.model.options
    text = {**models.variants()[config.model.name].VARIANTS[config.model.name]["text"], **options.get("text", {})}
    if config.init_text:
        text = text_of_others.read(config.init_text).options
    elif not text.get("tokenizer"):
        train, _ = load_data(config.data, needs_labels=False, needs_text=True)
        text["tokenizer"] = train_merges([example.text or "" for example in train.examples], video_text.VOCABULARY)
    return replace(config, model=replace(config.model, options={**options, "text": text}))


def comparison(
    data: Sequence[str], out: str, chosen: str, inits: Sequence[str], clips: int | None, settings: Mapping[str, Any]
) -> tuple[list[tuple[str, TrainConfig]], str]:
    """(the runs that `tubelet compare DATA` stands for, each with its name; the folder that they are in)."""
    paths, out = _where(data, out, settings, "compare")
    rungs = compare.rungs(chosen, inits)
    dataset = datasets.labelled(datasets.read_many(paths, settings.get("data.format", "auto")))
    return compare.ladder(paths, out, dataset, rungs, clips, settings), out


def _where(data: Sequence[str], out: str, settings: Mapping[str, Any], what: str) -> tuple[list[str], str]:
    """The data paths (of the command, else of the settings) and the run folder."""
    paths = list(data) or list(read_value(tuple[str, ...], settings.get("data.train", ()), "data.train"))
    if not paths:
        raise ConfigError("no data given: name at least one folder of videos or table")
    if out:
        return paths, out
    place = Path(paths[0]).resolve()
    name = place.parent.name if place.is_file() else place.name
    return paths, str(Path("runs") / f"{name}-{what}")


def _begun(out: str) -> TrainConfig | None:
    """The configuration of a run that has begun in this folder."""
    path = Path(out) / "config.yaml"
    return TrainConfig.from_yaml(path) if begun(Path(out)) and path.exists() else None


def _fitted(config: TrainConfig, dataset: Dataset, settings: Mapping[str, Any]) -> TrainConfig:
    """The recipe's run with the stride that fits the frames of a clip the user asked for."""
    frames = read_value(int, settings.get("clip.frames", config.clip.frames), "clip.frames")
    if frames == config.clip.frames or "clip.stride_frames" in settings:
        return config
    return replace(config, clip=replace(config.clip, stride_frames=fitting_stride(dataset.examples, frames)))


def _changed(base: TrainConfig, paths: Sequence[str], out: str, settings: Mapping[str, Any]) -> TrainConfig:
    values = to_dict(base)
    name = settings.get("model.name", base.model.name)
    if name != base.model.name and "model.options" not in settings:
        kept = [option for option in models.options_of(name) if option in KEPT_OPTIONS]
        values["model"]["options"] = {k: v for k, v in base.model.options.items() if k in kept}
    changed = with_settings(from_dict(TrainConfig, values), {**settings, "data.train": list(paths), "out": out})
    return TrainConfig(**{**vars(changed), "data": absolute(changed.data)})
