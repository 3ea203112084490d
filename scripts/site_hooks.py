"""What the site has beside the pages of docs/: the README as its start, CONTRIBUTING, the list of decisions, the API.

MkDocs calls the functions named `on_…` (mkdocs.yml). A link between Markdown files is written as it works in a checkout
and on GitHub; here it becomes a link between pages. Knows no page's content but its first heading.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "draftloop"
PAGES = {  # what lies outside docs/, and where it is in the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "LICENSE": "LICENSE.txt",
    "docs/decisions": "decisions/index.md",
}
_SOURCES = {page: source for source, page in PAGES.items()}
_LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")  # one with a scheme has a colon


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put what is listed from folders behind the navigation of mkdocs.yml."""
    assert config.nav is not None
    decisions = [{title: f"decisions/{path.name}"} for path, title in _decisions()]
    api = [{name: f"api/{name}.md"} for name in _api_pages()]
    config.nav += [
        {"Decisions": ["decisions/index.md", *decisions]},
        {"API": ["api/index.md", *api]},
        {"Contributing": "contributing.md"},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    made = {page: (ROOT / source).read_text("utf-8") for page, source in _SOURCES.items() if (ROOT / source).is_file()}
    made["decisions/index.md"] = decisions_index()
    made["api/index.md"] = api_index()
    made |= {f"api/{name}.md": page for name, page in _api_pages().items()}
    for page, content in made.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - by name
    """Turn links between files of the checkout into links between pages."""
    return site_links(markdown, page.file.src_uri)


def site_links(markdown: str, page: str) -> str:
    """The Markdown of one page, its links as they are in the site.

    Args:
        markdown: as it stands in its file; links are relative to that file.
        page: the page's own place in the site.
    """
    source = _SOURCES.get(page, f"docs/{page}")

    def moved(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
        there = PAGES.get(target, target.removeprefix("docs/"))
        return found[1] + posixpath.relpath(there, posixpath.dirname(page) or ".") + found[3]

    return markdown if page.startswith("api/") or page == "decisions/index.md" else _LINK.sub(moved, markdown)


def decisions_index() -> str:
    """Every decision's date and title, the newest first."""
    lines = ["# Decisions", "", "A page says what was decided on its day, why, and what else was tried.", ""]
    lines += [f"- {path.name[:10]}: [{title}]({path.name})" for path, title in _decisions()]
    return "\n".join([*lines, ""])


def _decisions() -> list[tuple[Path, str]]:
    """Every decision's page and its title without the date, the newest first."""
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"), reverse=True)
    date = re.compile(r"^# (\d{4}-\d\d-\d\d: )?| \(\d{4}-\d\d-\d\d\)$")
    titles = (date.sub("", path.read_text("utf-8").splitlines()[0]) for path in pages)
    return [(path, title[0].upper() + title[1:]) for path, title in zip(pages, titles, strict=True)]


def api_index() -> str:
    """The packages, each with the first line of its docstring."""
    lines = ["# API", "", "The command line is the interface; these are the packages behind it.", ""]
    lines += ["| package | what it is |", "|---|---|"]
    lines += [f"| [{name}]({name}.md) | {_summary(name)} |" for name in _api_pages()]
    return "\n".join([*lines, ""])


def _summary(name: str) -> str:
    file = PACKAGE.parent / name.replace(".", "/") / "__init__.py"
    return file.read_text("utf-8").removeprefix('"""').partition("\n")[0].removesuffix('"""')


def _api_pages() -> dict[str, str]:
    """For the package and each package in it, a page on which mkdocstrings shows the modules."""
    pages = {}
    for folder in (PACKAGE, *sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))):
        files = PACKAGE.glob("*.py") if folder == PACKAGE else folder.rglob("*.py")
        inner = sorted(name for name in map(_name, files) if name not in {"", _name(folder)})
        shown = [f"::: {_name(folder)}\n    options:\n      heading_level: 1", *(f"::: {name}" for name in inner)]
        pages[_name(folder)] = "\n\n".join(shown)
    return pages


def _name(path: Path) -> str:
    """The dotted name of a package's folder or of a module; empty for what is private."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return "" if any(part.startswith("_") for part in parts) else ".".join(parts)
