"""The documentation says what the code does: links lead somewhere, pages are current, commands exist."""

import importlib.util
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest

import tubelet
from tubelet.cli import commands, make_app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        place, _, anchor = unquote(link).partition("#")
        target = page if not place else (page.parent / place).resolve()
        assert target.exists(), f"{name(page)} links to {link}, which does not exist"
        if anchor:
            assert anchor in anchors(target), f"{name(page)} links to {link}: no such heading"


def test_generated_pages_are_current(generate: ModuleType) -> None:
    wanted = generate.pages()
    for path, text in wanted.items():
        page = ROOT / "docs" / path
        assert page.exists() and page.read_text(encoding="utf-8") == text, f"docs/{path} is stale: run `make pages`"
    written = {f"commands/{page.name}" for page in (ROOT / "docs" / "commands").glob("*.md")}
    assert written <= set(wanted), "a page has no command: run `make pages`"


def test_every_command_has_a_page_and_is_in_the_changelog() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for command in commands():
        assert (ROOT / "docs" / "commands" / f"{command}.md").exists()
        assert f"`{command}`" in changes or f"tubelet {command}" in changes


def test_every_page_is_in_the_site() -> None:
    site = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    listed = {page for entry in site["nav"] for page in entry.values()}
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert listed <= pages
    assert {page for page in pages if not page.startswith("commands/")} <= listed


def code_blocks(page: Path) -> list[str]:
    """Lines of fenced and indented code."""
    text = page.read_text(encoding="utf-8")
    fenced = [
        line for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for line in block.splitlines()
    ]
    return fenced + re.findall(r"^    (\S.*)$", text, flags=re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if "commands" not in page.parts], ids=name)
def test_commands_in_the_text_exist_with_these_flags(page: Path) -> None:
    app = make_app()
    inline = re.findall(r"`(tubelet [^`]+)`", page.read_text(encoding="utf-8"))
    lines = [*code_blocks(page), *inline]
    lines += [f"tubelet {launched}" for line in lines for launched in line.split(" -- ")[1:]]
    for line in (line.partition(" -- ")[0] for line in lines):
        if not re.match(r"tubelet [a-z]", line):
            continue
        words = shlex.split(line, comments=True)
        assert words[1] in commands(), f"{name(page)}: {line}"
        known = {flag for argument in app[words[1]].assemble_argument_collection() for flag in argument.names}
        for flag in words[2:]:
            if flag.startswith("--") and "." not in flag:
                assert flag in known, f"{name(page)}: {line}: {flag} is none of {sorted(known)}"


def test_dotted_settings_in_the_text_exist() -> None:
    from tubelet.train.config import setting_names

    known = set(setting_names())
    for page in PAGES:
        for flag in re.findall(r"--([a-z_]+\.[a-z_.-]+[a-z])", page.read_text(encoding="utf-8")):
            setting = flag.replace("-", "_")  # what stands below model.options is the model's, not a setting's name
            assert setting in known or setting.startswith("model.options."), f"{name(page)} mentions --{flag}"


def test_set_up_in_the_readme_is_two_targets_of_the_makefile() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^## Set up\n\n((?:    .+\n)+)", readme, flags=re.MULTILINE)
    assert block is not None
    assert block[1].split("\n") == ["    make demo", "    make test", ""]
    made = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "check", "bench"):
        assert f"make {target} " in made


def test_continuous_integration_runs_what_a_contributor_runs() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make check" in script and "torchvision|nvidia-" in script
    assert script.rstrip().endswith("make test")


def test_pins_hold_version_numbers_only() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.fullmatch(r"[a-z0-9-]+==\d[a-z0-9.]*", pin) for pin in pins)
    pinned = {pin.partition("==")[0] for pin in pins}
    assert not pinned & {"torchvision", "triton"} and not any(pin.startswith("nvidia") for pin in pinned)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    for line in [*project["dependencies"], *extras]:
        asked = re.split(r"[\[<>=]", line)[0].lower()
        assert asked in pinned | {"tubelet"}, f"{asked} is not pinned: run `make constraints`"
    assert project["version"] == tubelet.__version__
