"""The two domains are what they claim: code without words, words without code, and prompts from unread modules."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from scripts.reference_pair.corpus import Document, documents, part_of

MODULE = '''
"""The module's own words, long enough to be kept as prose."""

import os  # a remark beside code


# A block of comment lines that speaks at some length about what comes next, so
# that it is prose and no label, and is taken out of the code like all others.
class Shelf:
    """Things in a row, one after the other, in the order they came."""

    def take(self, count):
        """Take that many things off the shelf and give them back as a list."""
        found = "# no comment, a string"
        return found[:count]

    def wait(self):
        """Nothing but words is in the body of this function, and that is all."""
'''


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Document]:
    root = tmp_path_factory.mktemp("stdlib")
    (root / "shelf.py").write_text(textwrap.dedent(MODULE) * 2)
    (root / "broken.py").write_text("def (:\n")
    (root / "test").mkdir()
    (root / "test" / "test_shelf.py").write_text(MODULE)
    return {d.domain: d for d in documents(Path(root)) if d.name == "shelf"}


def test_code_keeps_no_docstring_and_no_comment(found: dict[str, Document]) -> None:
    code = found["code"].text
    assert "words" not in code
    assert "remark" not in code
    assert "# that" not in code
    assert "Take that many" not in code


def test_code_is_still_python_and_strings_with_a_hash_stay(found: dict[str, Document]) -> None:
    compile(found["code"].text, "shelf", "exec")
    assert '"# no comment, a string"' in found["code"].text
    assert "def take(self, count):\n        found" in found["code"].text


def test_prose_is_what_was_taken_out_under_the_names_of_what_it_describes(found: dict[str, Document]) -> None:
    prose = found["prose"].text
    assert "shelf.Shelf.take\n\nTake that many things" in prose
    assert "A block of comment lines" in prose
    assert "return found" not in prose


def test_tests_and_files_that_are_no_python_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "a.py").write_text(MODULE * 2)
    (tmp_path / "broken.py").write_text("def (:\n")
    assert {d.name for d in documents(tmp_path) if not d.name.startswith("topic")} == set()


def test_a_module_is_held_out_by_its_name_alone_and_about_one_in_eight_is() -> None:
    parts = [part_of(f"package.module{i}") for i in range(4000)]
    assert 0.10 < 1 - parts.count("train") / len(parts) < 0.15
    assert part_of("heapq") == part_of("heapq")
