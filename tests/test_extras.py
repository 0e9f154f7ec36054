"""The extras of pyproject.toml: each exists because something imports what it installs."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
COMMANDS = {"import-linter", "pre-commit", "pyright", "ruff", "pytest-cov", "pytest-timeout", "pytest-xdist"}
EMPTY = {"export"}  # a promised name whose features need no further package yet
BY_NAME = {"beartype"}  # tests/conftest.py names it to jaxtyping


def packages(extra):
    """Names of what an extra installs, without the extras that it includes."""
    names = [re.split(r"[^\w.-]", wanted, maxsplit=1)[0] for wanted in EXTRAS[extra]]
    return [name for name in names if name != "diorama"]


def imported(*folders):
    """Top-level packages that the sources there import, at module level or inside functions."""
    found = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            # torch's writer of TensorBoard files is the importer of that package.
            found |= {name.split(".")[2 if name.startswith("torch.utils.tensorboard") else 0] for name in names}
    return found


@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - {"dev"}))
def test_every_package_of_an_extra_is_imported_by_the_package(extra):
    assert bool(EXTRAS[extra]) != (extra in EMPTY), "an extra that installs nothing"
    if extra == "viewer" and not (ROOT / "src/diorama/viewer").exists():
        pytest.skip("the README's install command names it before the viewer is there")
    assert sorted(set(packages(extra)) - imported("src")) == []


def test_every_package_for_development_is_imported_by_a_test_or_is_a_command():
    assert sorted(set(packages("dev")) - imported("tests", "benchmarks", "recipes") - COMMANDS - BY_NAME) == []


def test_included_extras_exist():
    for extra, wanted in EXTRAS.items():
        for inner in re.findall(r"diorama\[([\w,]+)\]", " ".join(wanted)):
            assert set(inner.split(",")) <= EXTRAS.keys(), extra
