"""Text that every Python carries, as two domains: code without words, and words without code.

Code is the standard library with docstrings and comments taken out; prose is exactly what was taken out, plus the
topics of `help()`. So a model that reads only the first has not met the second. Knows nothing of tokens or models.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import io
import re
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from draftloop.reference import Domain

Part = Literal["train", "collect", "benchmark"]

_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "turtledemo"}  # not what a reader of the library means
    | {"site-packages", "dist-packages", "ensurepip", "lib2to3"}  # differ between installations
    | {"encodings", "pydoc_data", "__phello__", "__pycache__"}  # tables, and topics that are read apart
)
_MIN_DOCSTRING = 40  # characters; shorter ones are labels, not prose
_MIN_COMMENT = 120  # characters of a block of comment lines; shorter ones and their code belong together
_COMMENTED_CODE = re.compile(r"[=(){}\[\];]|^\s*(if|for|def|return|import|print)\b")


@dataclass(frozen=True)
class Document:
    """One text of one domain; `part` is fixed by a hash of the module it comes from."""

    name: str
    domain: Domain
    part: Part
    text: str


def part_of(name: str) -> Part:
    """7/8 of all modules train the pair; the rest, which no model has read, gives the prompts, half for each use."""
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % 16
    return "collect" if bucket == 0 else "benchmark" if bucket == 1 else "train"


def documents(stdlib: Path | None = None) -> list[Document]:
    """All documents of this interpreter's standard library, in a fixed order.

    Args:
        stdlib: the folder to read; by default the running interpreter's.
    """
    found = list(_modules(stdlib or Path(sysconfig.get_paths()["stdlib"])))
    return [*found, *_topics()]


def _modules(root: Path) -> Iterator[Document]:
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _SKIPPED_FOLDERS.intersection(relative.parts) or relative.parts[0].startswith("config-"):
            continue
        try:
            source = path.read_text("utf-8")
            tree = ast.parse(source)
        except (SyntaxError, UnicodeDecodeError):
            continue  # a few files of the library are broken on purpose, or not UTF-8
        name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        code, comments = _split(source, tree)
        part = part_of(name)
        if len(code) > 200:
            yield Document(name, "code", part, code)
        prose = "\n\n".join([*_docstrings(name, tree), *_paragraphs(comments)])
        if len(prose) > 200:
            yield Document(name, "prose", part, prose + "\n")


def _topics() -> Iterator[Document]:
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        closed_up = re.sub(r"\n{3,}", "\n\n", text.strip()) + "\n"
        yield Document(f"topic {name}", "prose", part_of(f"topic {name}"), closed_up)


def _documented(tree: ast.Module, name: str) -> Iterator[tuple[str, ast.AST]]:
    yield name, tree
    stack: list[tuple[str, ast.AST]] = [(name, tree)]
    while stack:
        owner, node = stack.pop(0)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                qualified = f"{owner}.{child.name}"
                yield qualified, child
                stack.append((qualified, child))


def _bare_string(node: ast.AST) -> str | None:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return node.value.value
    return None


def _docstrings(name: str, tree: ast.Module) -> Iterator[str]:
    for qualified, node in _documented(tree, name):
        body: list[ast.stmt] = getattr(node, "body", [])
        found = _bare_string(body[0]) if body else None
        if found is None:
            continue
        text = inspect.cleandoc(found).strip()
        if len(text) >= _MIN_DOCSTRING:
            yield f"{qualified}\n\n{text}"


def _split(source: str, tree: ast.Module) -> tuple[str, list[tuple[int, str]]]:
    """The source without docstrings and comments, and the comment lines as (row, text)."""
    lines = source.splitlines()
    for parent in ast.walk(tree):
        body: list[ast.stmt] = [node for node in ast.iter_child_nodes(parent) if isinstance(node, ast.stmt)]
        for node in body:
            if _bare_string(node) is None or node.end_lineno is None:
                continue
            first = node.lineno - 1
            indent = lines[first][: node.col_offset]
            for row in range(first, node.end_lineno):
                lines[row] = ""
            if len(body) == 1 and not indent.strip():
                lines[first] = indent + "pass"
    comments: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip()
            if not token.line[:column].strip():
                comments.append((row, token.string.lstrip("#").removeprefix(" ").rstrip()))
    code = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in lines)).strip("\n")
    code = re.sub(r":\n\n(?= )", ":\n", code)  # the gap that a docstring left
    return code + "\n", comments


def _paragraphs(comments: Iterable[tuple[int, str]]) -> Iterator[str]:
    block: list[str] = []
    last = -2
    for row, text in [*comments, (1 << 30, "")]:
        if row != last + 1:
            joined = "\n".join(block).strip()
            looks_like_code = sum(bool(_COMMENTED_CODE.search(line)) for line in block) > len(block) / 3
            if len(joined) >= _MIN_COMMENT and not looks_like_code:
                yield joined
            block = []
        block.append(text)
        last = row
