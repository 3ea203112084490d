"""The public API is there, and costs nothing until it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import draftloop


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = draftloop.nothing


@pytest.mark.parametrize("name", [name for name in draftloop.__all__ if not name.startswith("__")])
@pytest.mark.some(10)
def test_every_public_name_is_what_its_module_defines(name: str) -> None:
    script = f"import draftloop; found = draftloop.{name}; print(found.__name__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == name


def test_importing_the_package_imports_no_mlx() -> None:
    script = "import sys, draftloop; print([name for name in sys.modules if name.startswith('mlx')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
