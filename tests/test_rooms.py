"""The house: which room may import which, what CONTRIBUTING draws, and that no public name has two owners."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "draftloop"

# A room may import what its line names, and nothing else. Lines stand from the ground up, so there is no circle.
# `errors` and the formulas of `evaluation.estimator`, which know no file and no model, are everyone's.
MAY_IMPORT = {
    "reference": "",
    "store": "",
    "runtime": "",
    "config": "store runtime",
    "prompts": "config store",
    "data": "config store",
    "caches": "",
    "models": "reference config store runtime data caches",
    "decoding": "config runtime prompts data models caches",
    "collection": "store runtime prompts data models decoding",
    "registry": "config store data models",
    "evaluation": "config store runtime prompts data caches models decoding registry",
    "export": "config store data models registry evaluation",
    "scheduling": "config store runtime",
    "data_directory": "config store data models registry evaluation",
    "training": "config store runtime data caches models decoding registry data_directory",
    "status": "data evaluation data_directory",
    "retraining": "config store runtime data models registry evaluation data_directory training status",
    "serving": "config runtime store prompts data caches models decoding collection registry evaluation data_directory "
    "retraining",
    "demo": "reference config prompts data models decoding collection evaluation data_directory training",
    "whereabouts": "config",
    "doctor": "config runtime models training serving whereabouts",
}
EVERYONES = {"errors", "evaluation.estimator", "__version__"}


def modules() -> dict[str, Path]:
    """Every module below the package by its dotted name: `training.loop`."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(name: str, file: Path) -> Iterator[str]:
    """The modules of the package that a module imports, anywhere in it, by their dotted names."""
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    known = modules()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            home = ".".join(part for part in base if part)
            for alias in node.names:
                inner = f"{home}.{alias.name}".strip(".")
                yield inner if inner in known or not home else home


def room(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("importer", MAY_IMPORT)
def test_a_room_imports_what_its_line_names(importer: str) -> None:
    allowed = {importer, *MAY_IMPORT[importer].split()}
    wrong = [
        f"{name} imports {other}"
        for name, file in modules().items()
        if room(name) == importer
        for other in imports(name, file)
        if other not in EVERYONES and room(other) not in allowed
    ]
    assert wrong == []


def test_every_room_has_a_line_and_every_line_names_rooms_above_it() -> None:
    rooms = {room(name) for name in modules()} - {"", "__main__", "cli", "errors"}  # cli may import all, errors nothing
    assert rooms == set(MAY_IMPORT)
    seen: set[str] = set()
    for importer, line in MAY_IMPORT.items():
        assert set(line.split()) <= seen, importer
        seen.add(importer)
    assert list(imports("errors", PACKAGE / "errors.py")) == []


def test_a_line_names_no_room_that_is_not_imported() -> None:
    used: dict[str, set[str]] = defaultdict(set)
    for name, file in modules().items():
        used[room(name)].update(room(other) for other in imports(name, file) if other not in EVERYONES)
    for importer, line in MAY_IMPORT.items():
        assert set(line.split()) <= used[importer], importer


def test_no_public_class_or_function_has_the_name_of_another() -> None:
    owners = defaultdict(list)
    for name, file in modules().items():
        for node in ast.parse(file.read_bytes()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                owners[node.name].append(name)
    assert len(owners) > 300
    assert {name: homes for name, homes in owners.items() if len(homes) > 1} == {}


def test_at_most_nine_files_lie_outside_the_rooms() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 9


def test_the_tree_in_contributing_is_the_house() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    tree = re.search(r"```\nsrc/draftloop/\n(.*?)```", text, re.DOTALL)
    assert tree is not None
    lines = tree[1].splitlines()
    assert set(" ".join(line for line in lines if ".py" in line).split()) == {
        file.name for file in PACKAGE.glob("*.py") if not file.name.startswith("__")
    }
    folders = {match for line in lines for match in re.findall(r"(?<![\w/])(\w+)/", line)}
    assert folders == {path.parent.name for path in PACKAGE.rglob("__init__.py")} - {"draftloop"}


def test_tests_lie_as_the_rooms_do() -> None:
    """A folder of tests is a room of the package, or one of those that CONTRIBUTING names."""
    apart = {"benchmarks", "e2e", "faults", "real", "scripts", "support"}
    tests = {
        folder.name for folder in (ROOT / "tests").iterdir() if folder.is_dir() and any(folder.glob("**/test_*.py"))
    }
    assert tests - apart <= {room(name) for name in modules()}


@pytest.mark.parametrize("name", sorted({room(name) for name in modules()} - {"", "__main__"}))
def test_a_room_says_what_flows_in_and_out_and_what_it_does_not_know(name: str) -> None:
    file = modules()[name]
    if file.name == "__init__.py":
        said = ast.get_docstring(ast.parse(file.read_bytes())) or ""
        assert 3 <= len(said.splitlines()) <= 9


@pytest.mark.parametrize("name", sorted(file.parent.name for file in PACKAGE.glob("*/__init__.pyi")))
def test_a_room_hands_on_its_public_names_when_they_are_used(name: str) -> None:
    package = importlib.import_module(f"draftloop.{name}")
    assert package.__all__
    for public in package.__all__:
        assert not (PACKAGE / name / f"{public}.py").exists(), f"{public} would be the module once that is imported"
        assert getattr(package, public) is not None


def test_a_room_whose_names_are_not_used_loads_none_of_its_modules() -> None:
    program = (
        "import sys, draftloop.evaluation; print([name for name in sys.modules if 'draftloop.evaluation.' in name])"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"
