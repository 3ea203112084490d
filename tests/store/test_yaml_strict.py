"""YAML without its surprises."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from draftloop.errors import ConfigError
from draftloop.store.yaml_strict import MAX_BYTES, quoted, read_yaml, read_yaml_lines


@pytest.fixture
def written(tmp_path: Path):
    def write(content: str | bytes) -> Path:
        path = tmp_path / "c.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize("empty", ["", "\n", "# a comment alone\n", "~\n", "---\n"])
def test_an_empty_file_is_an_empty_mapping(written, empty):
    assert read_yaml(written(empty)) == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("-2e+3", -2000.0),
        (".5e-3", 0.0005),
        ("1.5e3", 1500.0),
        ("1.", 1.0),
        ("7", 7),
        ("-1", -1),
        ("0", 0),
        ("true", True),
        ("null", None),
        ("1:30", "1:30"),
        ("010", 10.0),
        ("2024-01-31", "2024-01-31"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("e5", "e5"),
        ("1e", "1e"),
    ],
)
def test_numbers_are_what_they_look_like(written, text, value):
    found = read_yaml(written(f"a: {text}\n"))["a"]
    assert found == value
    assert type(found) is type(value)


def test_what_other_code_does_to_the_shared_safe_loader_changes_nothing(written, monkeypatch):
    """mlx_lm.lora adds its own float pattern to yaml.SafeLoader at import; worse changes show that we stand apart."""
    for table in ("yaml_implicit_resolvers", "yaml_constructors"):
        monkeypatch.setattr(yaml.SafeLoader, table, dict(getattr(yaml.SafeLoader, table)))
    yaml.SafeLoader.yaml_implicit_resolvers["1"] = [("tag:yaml.org,2002:null", re.compile(".*"))]
    yaml.SafeLoader.add_constructor("tag:yaml.org,2002:bool", lambda loader, node: "broken")
    text = "rate: 1e-5\nsteps: 10\nsync: true\n"
    assert yaml.safe_load(text) == {"rate": None, "steps": None, "sync": "broken"}
    assert read_yaml(written(text)) == {"rate": 1e-5, "steps": 10, "sync": True}


def test_a_duplicate_key_is_refused_with_both_lines(written):
    with pytest.raises(ConfigError, match=r"c\.yaml, line 4: epochs was set on line 2 already"):
        read_yaml(written("training:\n  epochs: 1\n  seed: 0\n  epochs: 2\n"))


def test_the_same_key_in_two_sections_is_no_duplicate(written):
    assert read_yaml(written("a:\n  seed: 1\nb:\n  seed: 2\n")) == {"a": {"seed": 1}, "b": {"seed": 2}}


@pytest.mark.parametrize("key", ["1", "yes", "~", "[a, b]", "1.5"])
def test_a_key_that_is_not_text_is_refused_with_its_line(written, key):
    with pytest.raises(ConfigError, match=r"c\.yaml, line 2: key .* is not text"):
        read_yaml(written(f"a: 1\n? {key}\n: 2\n"))


def test_an_alias_is_refused_with_its_line(written):
    with pytest.raises(ConfigError, match=r"c\.yaml, line 2: aliases"):
        read_yaml(written("a: &x 1\nb: *x\n"))


@pytest.mark.parametrize(
    "value", ["!!bool foo", '!!int ""', "!!timestamp foo", "!!python/name:os.system", "!mine 1", "!!binary eA=="]
)
def test_a_tag_is_refused_with_its_line(written, value):
    with pytest.raises(ConfigError, match=r"c\.yaml, line 2: tags"):
        read_yaml(written(f"a: 1\nb: {value}\n"))


@pytest.mark.parametrize("content", ["[1, 2]\n", "just text\n", "42\n"])
def test_something_else_than_a_mapping_is_refused(written, content):
    with pytest.raises(ConfigError, match="a mapping of sections was expected, found"):
        read_yaml(written(content))


def test_a_syntax_error_gives_its_line(written):
    with pytest.raises(ConfigError, match=r"c\.yaml, line 3: not YAML"):
        read_yaml(written("a: 1\nb:\n\t- 2\n"))


def test_two_documents_in_one_file_are_refused(written):
    with pytest.raises(ConfigError, match="not YAML: but found another document"):
        read_yaml(written("a: 1\n---\nb: 2\n"))


def test_a_byte_order_mark_is_ignored(written):
    assert read_yaml(written(b"\xef\xbb\xbfa: 1\n")) == {"a": 1}


@pytest.mark.parametrize("raw", [b"a: \xff\n", b"\xff\xfea\x00:\x00", b"a: \xed\xa0\x80\n"])
def test_bytes_that_are_not_utf_8_are_refused(written, raw):
    with pytest.raises(ConfigError, match=r"c\.yaml: cannot be read: 'utf-8' codec"):
        read_yaml(written(raw))


def test_a_file_is_read_up_to_the_limit_and_not_beyond(written):
    assert read_yaml(written("#" * MAX_BYTES)) == {}
    with pytest.raises(ConfigError, match="more than 262,144 bytes"):
        read_yaml(written("#" * (MAX_BYTES + 1)))


def test_a_device_without_an_end_is_refused_too():
    with pytest.raises(ConfigError, match="more than 262,144 bytes"):
        read_yaml(Path("/dev/zero"))


def test_a_missing_file_and_a_directory_are_named(tmp_path):
    for path in (tmp_path / "no.yaml", tmp_path):
        with pytest.raises(ConfigError, match=re.escape(f"{path}: cannot be read")):
            read_yaml(path)


def test_the_line_of_every_key_is_known(written):
    _, lines = read_yaml_lines(written("a:\n  b: 1\n\n  c:\n    d: 2\ne: [1,\n 2]\n"))
    assert lines == {"a": 1, "a.b": 2, "a.c": 4, "a.c.d": 5, "e": 6}


@pytest.mark.parametrize(
    "text", ["plain", "a: b", "#x", "/a b #c", "123", "null", "on", "*x", "- a", 'a"b\\c', "a\nb", "\x7f", "é😀"]
)
def test_quoted_text_is_read_back_as_it_was(written, text):
    assert read_yaml(written(f"a: {quoted(text)}\n")) == {"a": text}
