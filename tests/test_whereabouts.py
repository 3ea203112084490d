"""A command says which configuration, pair and data directory it uses, and never takes the embedded pair in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftloop.config import Config, Resolved, resolve
from draftloop.whereabouts import in_a_line, in_rows, of_run, places

EMBEDDED = "embedded:target + embedded:draft"
NOWHERE = "no configuration here (looked for configs/config.yaml, configs/default.yaml)"


def resolved(text: str | None, **flags: str) -> Resolved:
    """With a configuration of that text in the working directory; None is no file."""
    if text is not None:
        Path("configs").mkdir()
        Path("configs/config.yaml").write_text(text)
    return resolve(flags={f"models.{name}": value for name, value in flags.items()}, environment={})


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "flags", "said"),
    [
        (None, {}, f"{NOWHERE}: the embedded pair, {EMBEDDED}"),
        ("", {}, f"config configs/config.yaml is empty: the embedded pair, {EMBEDDED}"),
        ("# models: {target: a}\n", {}, f"config configs/config.yaml is empty: the embedded pair, {EMBEDDED}"),
        ("models:\n", {}, f"config configs/config.yaml is empty: the embedded pair, {EMBEDDED}"),
        (
            "training: {epochs: 2}\n",
            {},
            f"config configs/config.yaml names no models: the embedded pair, {EMBEDDED}",
        ),
        ("models: {target: a}\n", {}, "config configs/config.yaml names no models.draft · a + embedded:draft"),
        ("models: {target: a, draft: b}\n", {}, "config configs/config.yaml · a + b"),
        (
            "models: {target: 'embedded:target', draft: 'embedded:draft'}\n",
            {},
            f"config configs/config.yaml · {EMBEDDED}",
        ),
        (None, {"target": "a", "draft": "b"}, f"{NOWHERE} · a + b"),
        ("models: {target: a}\n", {"draft": "b"}, "config configs/config.yaml · a + b"),
        ("training: {epochs: 2}\n", {"target": "a", "draft": "b"}, "config configs/config.yaml · a + b"),
    ],
)
def test_one_line_says_which_file_what_it_lacks_and_which_pair(
    text: str | None, flags: dict[str, str], said: str
) -> None:
    assert in_a_line(resolved(text, **flags), Path("data")) == f"{said} · data data/"


def test_json_and_rows_have_absolute_paths_of_models_too(tmp_path: Path) -> None:
    Path("a").mkdir()
    found = resolved("models: {target: a, draft: owner/b}\n")
    assert places(found, Path("data")) == {
        "config": str(tmp_path / "configs/config.yaml"),
        "models": {"target": str(tmp_path / "a"), "draft": "owner/b"},
        "data_dir": str(tmp_path / "data"),
    }
    assert in_rows(found, Path("data")) == {
        "config": str(tmp_path / "configs/config.yaml"),
        "models": f"{tmp_path / 'a'} + owner/b",
        "data": str(tmp_path / "data"),
    }


def test_without_a_file_the_rows_say_what_was_looked_for() -> None:
    found = resolved(None)
    assert in_rows(found, Path("data"))["config"] == "none here (looked for configs/config.yaml, configs/default.yaml)"
    assert in_rows(found, Path("data"))["models"] == f"{EMBEDDED} (the embedded pair)"
    assert places(found, Path("data"))["config"] is None


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"], ids=["long", "NUL"])
def test_a_name_that_no_file_system_takes_is_shown_as_it_is(name: str) -> None:
    assert places(resolved(None, target=name), Path("data"))["models"]["target"] == name


def test_a_run_that_goes_on_has_its_own_settings() -> None:
    assert of_run("r0001", Config(), Path("d")) == f"settings of run r0001 · {EMBEDDED} · data d/"
