"""Writes the pages that are made from the code, `make pages`: each command's help, all settings, the list of modules.

A test fails when a page differs from what would be written, when a command has no page, or when a page has no command.
"""

import ast
import dataclasses
import inspect
from pathlib import Path

import yaml

import tubelet
from tubelet.cli import commands, make_app
from tubelet.train.config import TrainConfig, to_dict

HERE = Path(__file__).parent
PACKAGE = Path(tubelet.__file__).parent

COMMANDS = """# Commands

Each page is what `tubelet COMMAND --help` says. Answers are printed on stdout and everything else on stderr; with
`--json` stdout is one JSON document. The exit code is 0 when it is done, 2 for a mistake, which one line of text names,
and 130 after Ctrl-C.

| command | what it does |
|---|---|
"""

SETTINGS = """# Settings

Every setting of a run. On the command line a setting is a dotted flag (`--optim.base-lr 1e-3`), in a file for
`--config` it is a line in its section. The values below are what holds where neither the recipe nor you say otherwise;
`tubelet pretrain videos --print-config` shows what the recipe chooses for your videos and your machine.
"""

MODULES = """# Modules

Every file of the package and the first sentence of its docstring. A leading underscore marks what is shared inside a
folder.

"""


def pages() -> dict[str, str]:
    """Path below docs/ -> text, of every generated page."""
    helps = {name: _help(name) for name in commands()}
    made = {f"commands/{name}.md": f"# tubelet {name}\n\n{text}\n" for name, text in helps.items()}
    rows = [f"| [`tubelet {name}`](commands/{name}.md) | {_summary(text)} |\n" for name, text in helps.items()]
    return made | {"commands.md": COMMANDS + "".join(rows), "settings.md": _settings(), "modules.md": _modules()}


def _help(name: str) -> str:
    """What `--help` says as Markdown, without its heading."""
    app = make_app()
    text = app[name].generate_docs(output_format="markdown").partition("\n")[2].strip()
    opening, _, rest = text.partition("```console\n")
    _, _, rest = rest.partition("```")
    usage = str(app[name].usage).removeprefix("Usage: ")
    for nothing in ("False", '""'):  # a default that means "off" or "not given" need not be said
        rest = rest.replace(f" *[default: {nothing}]*", "")
    return f"{opening}```console\n{usage}\n```{rest}".strip()


def _summary(text: str) -> str:
    return next(line for line in text.rpartition("```")[2].splitlines() if line.strip())


def _settings() -> str:
    """One section per part of a configuration: what its settings mean, and their defaults as YAML."""
    text = SETTINGS
    config = TrainConfig(out="runs/name")
    whole = to_dict(config)
    for field in dataclasses.fields(config):
        part = getattr(config, field.name)
        if dataclasses.is_dataclass(part):
            defaults = yaml.safe_dump({field.name: whole[field.name]}, sort_keys=False, default_flow_style=None)
            text += f"\n## {field.name}\n\n```text\n{inspect.getdoc(type(part))}\n```\n\n```yaml\n{defaults}```\n"
    return text


def _modules() -> str:
    """One list per folder."""
    folders: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        folder = path.parent.relative_to(PACKAGE.parent).as_posix()
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first = " ".join(docstring.partition("\n\n")[0].split())
        folders.setdefault(folder, []).append(f"- `{path.name}`: {first}\n")
    return MODULES + "\n".join(f"## {folder}\n\n{''.join(lines)}" for folder, lines in sorted(folders.items()))


if __name__ == "__main__":
    made = pages()
    for stale in {f"commands/{path.name}" for path in (HERE / "commands").glob("*.md")} - set(made):
        (HERE / stale).unlink()
    for name, text in made.items():
        (HERE / name).parent.mkdir(exist_ok=True)
        (HERE / name).write_text(text, encoding="utf-8")
    print(f"wrote {len(made)} pages below {HERE}")
