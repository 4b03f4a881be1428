"""`tubelet weights`: what a checkpoint is, moving it to another layout, and video models that begin from image models."""

from pathlib import Path
from typing import Literal

from tubelet.cli._print import emit_json, note, table, tell

# Of each action, what it asks for; a flag of another one would be ignored.
FLAGS = {
    "inspect": ("classes", "clip", "options"),
    "convert": ("to", "classes", "clip", "options"),
    "average": ("decay",),
    "begin": ("model", "how", "clip", "options"),
}


def command(
    action: Literal["inspect", "convert", "average", "begin"],
    /,
    *paths: str,
    to: Literal["tubelet", "huggingface", "original", "torchvision"] = "tubelet",
    classes: str = "",
    clip: list[str] | None = None,
    options: list[str] | None = None,
    decay: float | None = None,
    model: str = "",
    how: str = "",
    json: bool = False,
) -> int:
    """Say what a checkpoint is and whether it loads, write it in another layout, average several, or begin from an image model.

    `tubelet weights inspect SOURCE`, `tubelet weights convert SOURCE OUT --to huggingface`,
    `tubelet weights average RUN RUN ... OUT` and `tubelet weights begin IMAGE OUT --model vivit_base`.

    A source is a file or folder of weights (tubelet's own, the original implementations', transformers', torchvision's) or a hub
    id (`org/name`, `org/name@revision`). Nothing in a file is ever run, and a model whose weights do not all fit is refused.

    Parameters
    ----------
    action
        "inspect", "convert", "average" or "begin".
    paths
        The source or sources, then, but for "inspect", what is written: a folder, or for "original" and "torchvision" a .pth file.
    to
        The layout to write.
    classes
        Names of the classes in the order of the head: "kinetics400", "ssv2", or a file with one a line.
    clip
        What you know better than the files of how clips are cut, for example `--clip frames=32 --clip stride_frames=2`.
    options
        Options of the model that the files do not tell, for example `--options heads=6`.
    decay
        For "average": a moving average in the order of the models, in place of their mean.
    model
        For "begin": the video model, a name from `tubelet models`; clip_base_32 takes both towers of a CLIP of any size.
    how
        For "begin": the way, `central` or `inflate` (ViViT also `random`, TimeSformer `zero` or `copy`, CNNs `copy`, I3D
        `inflate`). Default: the family's usual one.
    json
        Print JSON.
    """
    from tubelet.errors import ConfigError
    from tubelet.weights import foreign

    given_flags = {
        "to": to != "tubelet", "classes": classes, "clip": clip, "options": options, "decay": decay is not None, "model": model,
        "how": how,
    }  # fmt: skip
    for flag, set_ in given_flags.items():
        if set_ and flag not in FLAGS[action]:
            raise ConfigError(
                f"--{flag} says nothing to `weights {action}`, which takes --{', --'.join(FLAGS[action])}: leave it out"
            )
    if action == "average":
        if len(paths) < 3:
            raise ConfigError("too few paths: tubelet weights average RUN RUN ... OUT")
        return _average(paths[:-1], paths[-1], decay, json)
    if len(paths) != (1 if action == "inspect" else 2):
        out = {"convert": " OUT --to huggingface", "begin": " OUT --model vivit_base"}.get(action, "")
        raise ConfigError(f"got {len(paths)} paths: tubelet weights {action} SOURCE{out}")
    if action == "begin":
        return _begin(paths[0], paths[1], model, how, _pairs(clip, "clip"), _pairs(options, "options"), json)
    given = foreign.Given(classes or None, _pairs(clip, "clip"), _pairs(options, "options"))
    if action == "inspect":
        return _inspect(paths[0], given, json)
    source, out = paths
    return _convert(source, out, to, given, json)


def _average(sources: tuple[str, ...], out: str, decay: float | None, json: bool) -> int:
    from tubelet.weights.average import average
    from tubelet.weights.convert import convert

    convert(average(sources, decay), out, "tubelet", {"average_of": list(sources), "decay": decay})
    if json:
        emit_json({"out": out, "average_of": list(sources), "decay": decay})
    else:
        tell(f"wrote {out}: the average of {len(sources)} models")
    return 0


def _inspect(source: str, given: "foreign.Given", json: bool) -> int:  # type: ignore[name-defined] # noqa: F821
    from tubelet.weights.inspect import inspect

    row = inspect(source, given)
    if json:
        emit_json(row)
        return 0 if row["loads"] else 2
    clip = row["clip"]
    facts = {
        "model": f"{row['name']} (family {row['family']}), {row['params'] / 1e6:.2f} M parameters",
        "layout": row["layout"],
        "clips": f"{clip['frames']} frames, stride {clip['stride_frames']}, {clip['size']}x{clip['size']} pixels",
        "normalised": f"mean {clip['mean']}, std {clip['std']}",
        "classes": f"{row['classes'] or 'no head'}" + ("" if row["class_names"] or not row["classes"] else ", without names"),
        "sha256": row["sha256"] or "-",
        "loads": "yes" if row["loads"] else f"no: {row['problem']}",
    }
    table([{"": fact, "what": text} for fact, text in facts.items()])
    for heading, texts in (("told by", row["inferred"]), ("assumed", row["assumed"])):
        if texts:
            tell()
            tell(heading)
            for fact, text in texts.items():
                tell(f"  {fact}: {text}")
    for text in row["notes"]:
        tell(f"note: {text}")
    return 0 if row["loads"] else 2


def _convert(source: str, out: str, to: str, given: "foreign.Given", json: bool) -> int:  # type: ignore[name-defined] # noqa: F821
    from tubelet.weights import foreign
    from tubelet.weights.convert import convert, prove
    from tubelet.weights.files import sha256
    from tubelet.weights.load import is_model, load_model, located, refuse_graph

    origin: dict[str, object] = {}
    place = located(source)
    refuse_graph(place)
    if is_model(place):
        foreign.refuse_given(given, source)
        model, before = load_model(place), None
        if not Path(source).exists():
            weights = sorted(place.rglob("*.safetensors"))
            origin = {"converted_from": source, "revision": place.name, "sha256": sha256(weights)}
    else:
        model, account = foreign.read(place, given)
        note(f"assumed: {account.assumptions()}")
        origin = {"converted_from": source, "layout": account.layout, "sha256": sha256(account.files)}
        origin |= {} if Path(source).exists() else {"revision": place.name}
        before = prove(model, account, place)
    after = convert(model, out, to, origin)
    proofs = {"source": before, out: after}
    if json:
        emit_json({"out": out, "to": to, **origin, "proofs": {name: vars(proof) for name, proof in proofs.items() if proof}})
        return 0
    tell(f"wrote {out}")
    if after.lost:
        tell(f"  not in this layout, to be given when it is read: {' '.join(after.lost)}")
    for name, proof in proofs.items():
        if proof:
            difference = proof.difference
            other = (
                proof.why if difference is None else f"the other implementation differs by at most {difference:.2g} on one clip"
            )
            tell(f"  {name}: {proof.round_trip} weights come back bit for bit; {other}")
    return 0


def _begin(
    source: str, out: str, variant: str, how: str, clip: dict[str, object], options: dict[str, object], json: bool
) -> int:
    from tubelet import models
    from tubelet.errors import ConfigError
    from tubelet.weights import image, text
    from tubelet.weights.convert import convert
    from tubelet.weights.load import located

    if not variant:
        raise ConfigError("no video model named: tubelet weights begin IMAGE OUT --model vivit_base")
    if "video" in models.options_of(variant):
        made, account = text.begin_clip(located(source), variant, clip, options)
    else:
        made, account = image.begin(located(source), variant, clip, how, options=options)
    convert(made, out, "tubelet", account)
    if json:
        emit_json({"out": out, "model": variant, **account})
        return 0
    tell(f"wrote {out}: {variant} begun from {account['image']}, {account['how']}")
    for line in image.summary(account):
        tell(f"  {line}")
    return 0


def _pairs(words: list[str] | None, flag: str) -> dict[str, object]:
    """{"frames": 32} of ["frames=32"]."""
    import yaml

    from tubelet.errors import ConfigError

    found = {}
    for word in words or []:
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"--{flag} {word}: it must be NAME=VALUE, for example --clip frames=32")
        try:
            found[name.replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--{flag} {word}: {value!r} is no value: a number, a word or a list such as [1,2]") from error
    return found
