"""A model directory is data: what needs Python of its own is refused by name, what does not works, nobody is asked."""

from __future__ import annotations

import importlib.machinery
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from model_dirs import edit_json, write_llama

from draftloop.config import Models
from draftloop.errors import PairError
from draftloop.models.loading import load_directory, needs_code
from draftloop.models.pair import load_pair

RAN = "ran"
_TOKENIZER = f"""
from pathlib import Path
from transformers import PreTrainedTokenizerFast
(Path(__import__("os").environ["DIRECTORY"]) / "{RAN}").touch()
class Own(PreTrainedTokenizerFast):
    pass
"""
_MODEL = f"""
from pathlib import Path
from mlx_lm.models.llama import Model, ModelArgs
(Path(__file__).parent / "{RAN}").touch()
"""
_CONFIG = f"""
from pathlib import Path
from transformers import LlamaConfig
(Path(__import__("os").environ["DIRECTORY"]) / "{RAN}").touch()
class Own(LlamaConfig):
    pass
"""
OWN_TOKENIZER: dict[str, Any] = {"auto_map": {"AutoTokenizer": [None, "own_tokenizer.Own"]}, "tokenizer_class": "Own"}
OWN_CONFIG: dict[str, Any] = {"auto_map": {"AutoConfig": "own_config.Own", "AutoModelForCausalLM": "own_model.Own"}}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with Python beside it that leaves a mark when it runs."""
    monkeypatch.setenv("DIRECTORY", str(tmp_path / "model"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    path = write_llama(tmp_path / "model")
    for name, program in (("own_tokenizer", _TOKENIZER), ("own_model", _MODEL), ("own_config", _CONFIG)):
        (path / f"{name}.py").write_text(program)
    return path


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A place of this test's own for the Python that transformers takes from directories."""
    import transformers.dynamic_module_utils as dynamic

    before = set(sys.modules)
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "transformers_modules":
            del sys.modules[name]


def needs_tokenizer(directory: Path) -> None:
    edit_json(directory / "tokenizer_config.json", **OWN_TOKENIZER)


def needs_tokenizer_of_old(directory: Path) -> None:
    edit_json(directory / "tokenizer_config.json", auto_map=["own_tokenizer.Own", None], tokenizer_class="Own")


def needs_tokenizer_from_the_hub(directory: Path) -> None:
    reference = "somebody/else--own_tokenizer.Own"
    edit_json(
        directory / "tokenizer_config.json", auto_map={"AutoTokenizer": [reference, reference]}, tokenizer_class="Own"
    )


def needs_model(directory: Path) -> None:
    edit_json(directory / "config.json", model_file="own_model.py")


NEEDING = {
    needs_tokenizer: "tokenizer_config.json names Python of its own under auto_map",
    needs_tokenizer_of_old: "tokenizer_config.json names Python of its own under auto_map",
    needs_tokenizer_from_the_hub: "tokenizer_config.json names Python of its own under auto_map",
    needs_model: "config.json names Python of its own under model_file",
}


@pytest.mark.parametrize("needs", NEEDING, ids=lambda needs: needs.__name__)
@pytest.mark.parametrize("role", ["target", "draft"])
def test_what_needs_python_of_its_own_is_refused_by_the_file_and_the_key(
    needs: Any, role: str, directory: Path, small_models: Models
) -> None:
    needs(directory)
    with pytest.raises(PairError) as caught:
        load_pair(small_models.model_copy(update={role: str(directory)}))
    message = str(caught.value)
    assert NEEDING[needs] in message
    assert "models.trust_remote_code" in message
    assert (caught.value.exit_code, "\n" in message, len(message) < 600) == (2, False, True)
    assert not (directory / RAN).exists()


@pytest.mark.parametrize("needs", [needs_tokenizer, needs_model], ids=lambda needs: needs.__name__)
@pytest.mark.usefixtures("modules")
def test_it_runs_where_that_is_allowed(needs: Any, directory: Path) -> None:
    """Or the tests above would see nothing run whatever happened."""
    needs(directory)
    _, tokenizer, config = load_directory(directory, trust_remote_code=True)
    assert (directory / RAN).exists()
    assert needs_code(tokenizer, config) == NEEDING[needs].replace(" names Python of its own under", ":")


def test_what_a_directory_names_and_does_not_need_neither_runs_nor_keeps_it_from_working(directory: Path) -> None:
    """So it is with most conversions of models that came before transformers knew them."""
    edit_json(directory / "config.json", **OWN_CONFIG)
    for auto_map in (OWN_TOKENIZER["auto_map"], {"AutoProcessor": "own_config.Own"}):
        edit_json(directory / "tokenizer_config.json", auto_map=auto_map)  # and a class that transformers has
        _, tokenizer, config = load_directory(directory, trust_remote_code=False)
        assert tokenizer.encode("the") == load_directory(directory, trust_remote_code=False)[1].encode("the")
        assert needs_code(tokenizer, config) is None
    (directory / "preprocessor_config.json").write_text(json.dumps({"auto_map": {"AutoProcessor": "own_config.Own"}}))
    load_directory(directory, trust_remote_code=False)
    assert not (directory / RAN).exists()


def test_a_model_type_that_transformers_does_not_know_works_where_mlx_lm_knows_it(directory: Path) -> None:
    edit_json(directory / "config.json", model_type="iquestcoder", **OWN_CONFIG)  # mlx-lm takes it for a Llama
    load_directory(directory, trust_remote_code=False)
    assert not (directory / RAN).exists()


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("config.json", "model_type"),
        ("tokenizer_config.json", "chat_template_type"),
        ("tokenizer_config.json", "tool_parser_type"),
    ],
)
def test_a_name_of_a_module_is_no_path(name: str, key: str, directory: Path) -> None:
    """Python looks for no path in a package, but what editable installations add to it does."""
    edit_json(directory / name, **{key: f"../{directory}/own_model"})
    with pytest.raises(PairError, match=rf"{name}: {key} is '\.\./.*', expected a name and no path"):
        load_directory(directory, trust_remote_code=False)
    assert not (directory / RAN).exists()
    found = importlib.machinery.PathFinder.find_spec(f"mlx_lm.models.{directory}/own_model", [str(directory.parent)])
    assert found is None


def test_a_module_that_mlx_lm_does_not_have_is_refused(directory: Path) -> None:
    edit_json(directory / "tokenizer_config.json", tool_parser_type="nobodys")
    with pytest.raises(PairError, match="cannot be loaded by mlx-lm: ModuleNotFoundError"):
        load_directory(directory, trust_remote_code=False)


def test_it_is_loaded_with_the_adapter_of_a_directory(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(PairError, match="cannot be loaded by mlx-lm: FileNotFoundError"):
        load_directory(directory, trust_remote_code=False, adapter=tmp_path / "nowhere")
    shutil.rmtree(directory)
