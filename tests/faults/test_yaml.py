"""Bad YAML: alias bombs, duplicate keys, `1e-5`, unknown keys, a megabyte, and random damage."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
from fault_table import Row

from draftloop.config import Config, resolve, to_yaml
from draftloop.errors import ConfigError

pytestmark = pytest.mark.row("YAML")


def resolved(path: Path, content: str | bytes) -> Config:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return resolve(path, environment={}).config


def refusal(path: Path, content: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(path, content)
    message = str(caught.value)
    assert message.startswith((str(path), f"file {path}")), "the file is not named"
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def test_an_alias_bomb_is_refused_before_it_grows(path, row: Row):
    """Nine levels of nine aliases: 387 million texts from half a kilobyte."""
    levels = "abcdefghi"
    bomb = "a: &a [" + ", ".join(['"lol"'] * 9) + "]\n"
    bomb += "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in itertools.pairwise(levels))
    assert "line 2: aliases (*name) are not accepted" in refusal(path, bomb)
    row.did(1, "alias bombs")


def test_a_merge_bomb_is_refused_too(path):
    assert "line 3: aliases" in refusal(path, "a: &a {x: 1}\nb:\n  <<: [*a, *a]\n")


def test_an_anchor_that_contains_itself_is_refused(path):
    assert "line 1: aliases" in refusal(path, "a: &a [*a]\n")


@pytest.mark.parametrize("key", ["epochs", '"epochs"', "'epochs'", "? epochs\n  "])
def test_a_duplicate_key_is_refused_with_its_line_however_it_is_written(path, key, row: Row):
    message = refusal(path, f"training:\n  epochs: 1\n  seed: 1\n  {key}: 2\n")
    assert "line 4: epochs was set on line 2 already" in message
    row.did(1, "duplicate keys")


def test_a_duplicate_section_is_refused_with_its_line(path):
    message = refusal(path, "training:\n  epochs: 1\ndata: {}\ntraining:\n  seed: 2\n")
    assert "line 4: training was set on line 1 already" in message


def test_an_unknown_key_is_refused_with_its_line_among_many_good_ones(path, row: Row):
    good = to_yaml().splitlines()
    for at in [number for number, line in enumerate(good) if line.startswith("  ") and not line.startswith("    ")]:
        bad = [*good[:at], "  nonsense: 1", *good[at:]]
        message = refusal(path, "\n".join(bad) + "\n")
        assert f"line {at + 1}: unknown key " in message
        assert ".nonsense" in message
        row.did(1, "unknown keys")


@pytest.mark.parametrize("number", ["1e-5", "1E-5", "+1e-5", "1.e-5", "0.1e-4", ".1e-4", "0.00001"])
def test_a_small_number_is_a_number_however_it_is_written(path, number):
    assert resolved(path, f"training:\n  learning_rate: {number}\n").training.learning_rate == pytest.approx(1e-5)


@pytest.mark.parametrize(
    "number", [".inf", "-.inf", ".nan", "1e999", "9" * 5000, "0x" + "f" * 5000, "1e", "--1", "1e-5x"]
)
@pytest.mark.parametrize("key", ["learning_rate", "epochs"])
def test_what_is_no_finite_number_is_refused(path, number, key):
    assert len(refusal(path, f"training:\n  {key}: {number}\n")) < 400


@pytest.mark.parametrize(
    "megabyte",
    [
        b"#" * 2**20,
        b"a: " + b"x" * 2**20,
        b"a: [" + b"1, " * (2**20 // 3) + b"]",
        b"".join(b"key%d: 1\n" % number for number in range(2**20 // 12)),
        b"[" * 2**20,
        b"\x00" * 2**20,
    ],
    ids=["comment", "text", "list", "keys", "brackets", "zeros"],
)
def test_a_megabyte_is_refused_without_parsing_it(path, megabyte, row: Row):
    assert "bytes; is this a configuration?" in refusal(path, megabyte)
    row.did(1, "files of a megabyte")


@pytest.mark.parametrize("nested", ["[" * 5000, "{a: " * 5000, "- " * 5000, "a: " + "[" * 400 + "]" * 400, "? " * 5000])
def test_deep_nesting_is_refused(path, nested):
    refusal(path, nested)


@pytest.mark.parametrize(
    "code",
    ["!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!<tag:yaml.org,2002:python/none> x"],
)
def test_python_in_yaml_is_refused(path, code):
    assert "tags (" in refusal(path, f"models:\n  target: {code}\n")


def test_random_damage_is_read_or_refused_and_never_anything_else(path, row: Row):
    """Bytes of the default file cut, doubled, swapped and replaced: a configuration or one line, no other exception."""
    generator = random.Random(0)
    whole = to_yaml().encode()
    refused, cases = 0, row.count(300, 5000)
    for _ in range(cases):
        damaged = _damaged(whole, generator)
        try:
            resolved(path, damaged)
        except ConfigError:
            refusal(path, damaged)
            refused += 1
    assert 0.05 < refused / cases < 0.95  # so both were met
    row.did(cases, "damaged files")


def _damaged(whole: bytes, generator: random.Random) -> bytes:
    raw = bytearray(whole[: generator.randrange(200, len(whole))])
    for _ in range(generator.randint(1, 4)):
        at = generator.randrange(len(raw))
        match generator.randrange(4):
            case 0:
                raw[at] = generator.randrange(256)
            case 1:
                raw[at:at] = raw[at : at + generator.randrange(60)]
            case 2:
                del raw[at : at + generator.randrange(60)]
            case _:
                raw[at : at + 1] = generator.choice(
                    [b"&a ", b"*a", b"!!int ", b"\t", b"\n", b": ", b"- ", b"{", b"|", b"'", b"%"]
                )
    return bytes(raw)
