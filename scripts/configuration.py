"""Write what follows from `draftloop/config.py`: configs/default.yaml and the tables of docs/configuration.md.

    .venv/bin/python scripts/configuration.py

Between `<!-- settings -->` and `<!-- end -->` stands a table for each section, and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from draftloop.config import Config, Section, to_yaml

ROOT = Path(__file__).resolve().parent.parent
DEFAULTS = ROOT / "configs" / "default.yaml"
PAGE = ROOT / "docs" / "configuration.md"
NO_LIMIT = 2**31 - 1  # what only keeps a number within its type
_BLOCK = re.compile(r"(<!-- settings -->\n).*?(<!-- end -->)", re.DOTALL)
_TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "`true` or `false`",
    "array": "list of texts, or a text with commas",
}


def rendered(text: str) -> str:
    """The page with its tables made anew."""
    tables = "\n".join(_tables(Config, ""))
    return _BLOCK.sub(lambda found: found[1] + tables + found[2], text)


def _tables(section: type[Section], key: str) -> Iterator[str]:
    """A heading, a sentence and a table for a section, then the same for each section in it."""
    known = section.model_json_schema()["properties"]
    inner: dict[str, type[Section]] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            inner[name] = field.annotation
    rows = [
        f"| `{name}` | `{_default(field.default)}` | {values(known[name], field.annotation)} | {field.description} |"
        for name, field in section.model_fields.items()
        if name not in inner
    ]
    if rows:
        yield f"### `{key}`\n"
        yield f"{(section.__doc__ or '').splitlines()[0]}\n"
        yield "\n".join(["| key | default | values | meaning |", "|---|---|---|---|", *rows, ""])
    for name, annotation in inner.items():
        yield from _tables(annotation, f"{key}.{name}".lstrip("."))


def _default(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def values(schema: dict[str, Any], annotation: Any) -> str:
    """What a setting may be, in words: "whole number, 1 to 64".

    Args:
        schema: of the field, as JSON Schema.
        annotation: its type, for a field that checks itself and has no schema.
    """
    if "anyOf" in schema:
        return " or ".join(values(one, None) for one in schema["anyOf"])
    if "$ref" in schema or "enum" in schema or "const" in schema:
        choices = schema.get("enum", [schema.get("const")])
        return ", ".join(f"`{choice}`" for choice in choices)
    if "type" not in schema:
        number = "whole number" if int in get_args(annotation) else "number"
        return "JSON object" if get_origin(annotation) is dict else f"`auto` or a {number} above 0"
    if schema["type"] == "null":
        return "`null`"
    limits = _range(schema)
    return _TYPES[schema["type"]] + (f", {limits}" if limits else "")


def _range(schema: dict[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if below is not None and below > NO_LIMIT:
        below = None
    if high is not None and low is not None:
        return f"{low:g} to {high:g}"
    lower = f"{low:g} or more" if low is not None else f"above {above:g}" if above is not None else ""
    upper = f"up to {high:g}" if high is not None else f"below {below:g}" if below is not None else ""
    return ", ".join(part for part in (lower, upper) if part)


if __name__ == "__main__":
    DEFAULTS.write_text(to_yaml(), "utf-8")
    PAGE.write_text(rendered(PAGE.read_text("utf-8")), "utf-8")
