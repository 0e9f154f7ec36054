"""The package as a whole: what importing it costs, what it promises, and the habits that a program can check."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import diorama

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
README = (ROOT / "README.md").read_text()


def test_importing_the_package_imports_nothing_heavy():
    program = (
        "import sys, diorama; dir(diorama); print([m for m in ('torch', 'numpy', 'diffusers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout == "[]\n"


def test_the_version_is_the_installed_one():
    assert diorama.__version__ == importlib.metadata.version("diorama")


@pytest.mark.parametrize("name", diorama.__all__)
def test_every_public_name_resolves(name):
    assert getattr(diorama, name).__name__ == name
    assert name in dir(diorama)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = diorama.nothing


def test_the_types_travel_with_the_package():
    assert (Path(diorama.__file__).parent / "py.typed").exists()


def readme_command(name: str) -> str:
    """The one-line command that follows a marker in the README, as .ci/run reads it."""
    match = re.search(rf"<!-- {name}-command -->\n```bash\n(.+)\n```", README)
    assert match, f"README.md lacks the {name} command"
    return match[1]


@pytest.mark.parametrize(("name", "last"), [("demo", ".venv/bin/diorama demo"), ("test", ".venv/bin/pytest")])
def test_readme_commands_are_complete_on_a_fresh_machine(name, last):
    assert readme_command(name).split(" && ") == [
        "python3 -m venv .venv",
        '.venv/bin/pip install -e ".[dev,viewer]"',
        last,
    ]


def test_continuous_integration_runs_the_readme_command():
    result = subprocess.run([ROOT / ".ci/run", "--show"], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == readme_command("test")


def test_the_readme_captions_every_file_and_no_other():
    """The tree in the README: four spaces a level, a name, a caption."""
    tree = README.split("```text\n", 1)[1].split("```", 1)[0]
    captioned, folders = set(), []
    for line in tree.splitlines():
        level, name = (len(line) - len(line.lstrip())) // 4, line.split()[0]
        folders[level:] = [name]
        captioned.add("".join(folders))
    shown = {str(path.relative_to(ROOT)) for path in SOURCES if path.stat().st_size}
    assert sorted(shown - captioned) == [], "without a caption in README.md"
    assert [path for path in sorted(captioned) if not (ROOT / path).exists()] == [], "captioned but absent"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_a_file_keeps_the_habits(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 350, "more than 350 lines"
    assert not {"utils", "common", "misc", "helpers"} & {path.stem, *path.parts}, "a name that says nothing"
    marks = re.findall(r"TODO|FIXME|XXX|NotImplementedError|pragma: no cover|load_state_dict\(.*strict=False", text)
    assert not marks, f"unfinished: {marks}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            where = f"{node.name}, line {node.lineno}"
            assert node.end_lineno - node.lineno < 50, f"more than 50 lines: {where}"
            positional = [a.arg for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
            assert len(positional) <= 6, f"more than 6 positional parameters: {where}"
