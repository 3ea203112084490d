"""The pages hold together: every link leads somewhere, what is made from code is up to date, the README stays short."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from draftloop import errors
from scripts import configuration, site_hooks

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
_CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_NAMED = re.compile(r"\b((?:docs/[\w./-]+|README|CONTRIBUTING)\.md)(#[\w-]+)?")


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """What a page links to within the checkout: a file, and an anchor in it or nothing."""
    for target in _LINK.findall(_CODE.sub("", page.read_text("utf-8"))):
        if ":" not in target:
            file, _, anchor = target.partition("#")
            yield (page.parent / file if file else page), anchor


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"^ *```.*?^ *```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    return [
        f"{page.name}: {file.name}#{anchor}"
        for file, anchor in links(page)
        if not file.exists() or (anchor and anchor not in anchors(file))
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_anchor_of_a_page_exists(page: Path) -> None:
    assert broken(page) == []


def test_a_link_to_a_missing_file_or_heading_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("## What lies in `data/`: it\n```\n# no heading\n```\n")
    page = tmp_path / "a.md"
    page.write_text("[a](b.md#what-lies-in-data-it) [b](b.md#no-heading) [c](c.md) `[d](d.md)` [e](https://e.org/#e)\n")
    assert broken(page) == ["a.md: b.md#no-heading", "a.md: c.md#"]


def test_every_page_that_the_code_names_exists() -> None:
    folders = ("src", "benchmarks", "scripts", "configs")
    files = [
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".sh", ".yaml"}
    ]
    named = {found for path in files for found in _NAMED.findall(path.read_text("utf-8"))}
    assert any(name.startswith("docs/") for name, _ in named)
    for name, anchor in named:
        assert (ROOT / name).exists(), name
        assert not anchor or anchor[1:] in anchors(ROOT / name), name + anchor


def test_contributing_names_modules_that_exist() -> None:
    prose = re.sub(r"^```.*?^```$", "", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"`([\w/]+\.py)`", prose))
    assert "decoding/decoder.py" in named
    assert [name for name in named if not any((ROOT / at / name).exists() for at in (".", "src/draftloop"))] == []


def test_every_picture_and_page_of_the_docs_is_reached_from_another() -> None:
    targets = {file.resolve() for page in PAGES for file, _ in links(page)}
    decisions = set((ROOT / "docs" / "decisions").iterdir())  # the README links their folder
    files = {path for path in (ROOT / "docs").rglob("*") if path.suffix in {".md", ".svg"}} - decisions
    assert {path.relative_to(ROOT) for path in files - targets} == set()


def only_on_github(text: str) -> list[str]:
    """Lines that begin a list or a table, or lie within a list's item, as GitHub reads them and Python-Markdown not.

    The latter wants a blank line before a list or a table, and four spaces before what belongs to an item.
    """
    found, before, fenced = [], "", False
    starts = re.compile(r"- |\d+\. |\|")
    for line in text.splitlines():
        fence = line.lstrip().startswith("```")
        nested = re.match(r" {1,3}\S", line) and (fence or not before)
        begins = starts.match(line) and before and not before.startswith((" ", "<!--")) and not starts.match(before)
        if not fenced and (nested or begins):
            found.append(line)
        fenced ^= fence
        before = line
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_reads_the_same_on_github_and_in_the_site(page: Path) -> None:
    assert only_on_github(page.read_text("utf-8")) == []


def test_what_only_github_reads_would_be_found() -> None:
    text = (
        "Text\n- no list\n\n1. item\n   goes on\n\n   is not of the item\n\n   ```sh\n   - code\n   ```\nText\n| a |\n"
    )
    assert only_on_github(text) == ["- no list", "   is not of the item", "   ```sh", "| a |"]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 160


def test_the_exit_codes_of_the_page_are_those_of_the_errors() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    section = (ROOT / "docs" / "command-line.md").read_text("utf-8").partition("## Exit codes")[2].partition("\n## ")[0]
    found = {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)}
    assert found == {kind.exit_code for kind in kinds} | {0, 11}


def test_the_settings_page_is_what_the_configuration_says() -> None:
    text = configuration.PAGE.read_text("utf-8")
    assert configuration.rendered(text) == text, "run .venv/bin/python scripts/configuration.py"
    assert configuration.rendered(text.replace("number, 0 to 10", "number")) == text


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 64}, "whole number, 1 to 64"),
        ({"type": "integer", "minimum": 0, "exclusiveMaximum": 2**31}, "whole number, 0 or more"),
        ({"type": "number", "exclusiveMinimum": 0.0, "exclusiveMaximum": 0.5}, "number, above 0, below 0.5"),
        ({"type": "number", "exclusiveMinimum": 0.0, "maximum": 1.0}, "number, above 0, up to 1"),
        ({"anyOf": [{"type": "number", "exclusiveMinimum": 0.0}, {"type": "null"}]}, "number, above 0 or `null`"),
        ({"type": "string", "enum": ["a", "b"]}, "`a`, `b`"),
        ({"type": "boolean"}, "`true` or `false`"),
        ({"type": "string", "minLength": 1}, "text"),
        ({"type": "array", "items": {"type": "string"}}, "list of texts, or a text with commas"),
    ],
)
def test_the_range_of_a_setting_is_said_in_words(schema: dict, words: str) -> None:
    assert configuration.values(schema, None) == words


def test_links_between_files_become_links_between_pages_of_the_site() -> None:
    site_links = site_hooks.site_links
    assert site_links("[a](docs/guide.md#words) ![b](docs/pictures/round.svg)", "index.md") == (
        "[a](guide.md#words) ![b](pictures/round.svg)"
    )
    assert site_links("[a](docs/decisions) [b](LICENSE) [c](https://a.org/b.md)", "index.md") == (
        "[a](decisions/index.md) [b](LICENSE.txt) [c](https://a.org/b.md)"
    )
    assert site_links("[a](../README.md) [b](#words)", "guide.md") == "[a](index.md) [b](#words)"
    assert site_links("[a](../measurements.md#drift) [b](2026.md)", "decisions/2025.md") == (
        "[a](../measurements.md#drift) [b](2026.md)"
    )


def test_pre_commit_runs_what_make_lint_runs() -> None:
    make = shutil.which("make") or pytest.skip("no make")
    shown = subprocess.run([make, "-n", "lint"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == [
        line for line in shown.splitlines() if line.startswith(".venv/bin/python")
    ]
