"""Reads YAML strictly: no duplicate keys, aliases, tags or megabytes; `1e-5` is a number and `1:30` is not."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError

MAX_BYTES = 256 * 1024


class _Loader(yaml.SafeLoader):
    """A loader with tables of its own, because mlx-lm changes those of the shared SafeLoader."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"line {line}: aliases (*name) are not accepted; write the value out")
        if event.tag is not None:
            raise ConfigError(f"line {line}: tags ({event.tag:.80}) are not accepted; leave it out")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ConfigError(f"line {line}: key {key!r:.80} is not text")
            if key in seen:
                raise ConfigError(f"line {line}: {key:.80} was set on line {seen[key]} already; keep one")
            seen[key] = line
        return super().construct_mapping(node, deep)


_INT, _FLOAT, _TIME = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp"))
_Loader.yaml_constructors = dict(yaml.constructor.SafeConstructor.yaml_constructors)
_Loader.yaml_implicit_resolvers = {  # YAML 1.1 reads 1:30 as 90, 010 as 8 and 1e-5 as text
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT, _TIME)]
    for first, resolvers in yaml.resolver.Resolver.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"^[-+]?(0|[1-9]\d*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"^[-+]?((\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        ConfigError: not readable, too large, not YAML, not a mapping, a duplicate key, an alias, a tag; with its line.
    """
    return read_yaml_lines(path)[0]


def read_yaml_lines(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """What `read_yaml` returns, and the line of every dotted key in it, counted from 1."""
    text = _read_text(path)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        values = None if node is None else loader.construct_document(node)
    except ConfigError as error:
        raise ConfigError(f"{path}, {error}") from None
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{where}: not YAML: {error.problem or error.context}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply for a configuration") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}, {}
    if not isinstance(values, dict) or not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}: a mapping of sections was expected, found {type(values).__name__}")
    return values, dict(_lines(node))


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)  # bounded, because a device or a pipe has no size to look at first
        if len(raw) > MAX_BYTES:
            raise ConfigError(f"{path}: more than {MAX_BYTES:,} bytes; is this a configuration?")
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def _lines(node: yaml.MappingNode, prefix: str = "") -> Iterator[tuple[str, int]]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        yield name, key.start_mark.line + 1
        if isinstance(value, yaml.MappingNode):
            yield from _lines(value, f"{name}.")


def quoted(text: str) -> str:
    """Text as a YAML scalar that `read_yaml` reads back as this very text."""
    dumped: str = yaml.dump(text, default_style='"', allow_unicode=True, width=1 << 30)
    return dumped.strip()
