"""`models`: what is known of mlx-lm's text models, without loading one."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from draftloop.models.matrix import known_models


def test_it_lists_every_model_and_counts_those_that_work(call) -> None:
    found, known = call("models"), known_models()
    assert found.code == 0
    works = sum(model.works for model in known.models)
    assert f"{works} of {len(known.models)} work with mlx-lm" in found.out
    for model in known.models:
        assert model.name in found.out


def test_one_that_does_not_work_has_its_reason(call) -> None:
    found = call("models", "llama", "olmo")
    assert found.code == 0
    assert "olmo does not work: no tiny one can be built" in " ".join(found.out.split())
    assert "gemma" not in found.out


def test_as_json(call) -> None:
    found = call("models", "qwen3_5", "--json")
    (model,) = found.json["models"]
    assert (found.json["status"], model["works"], model["rewinds"]) == ("ok", True, "local")


def test_an_unknown_model_is_a_mistake_that_is_named(call) -> None:
    found = call("models", "llama5")
    assert found.code == 2
    assert "llama5 is no text model of mlx-lm" in found.err


def test_at_least_85_of_100_work_and_each_that_does_not_says_why() -> None:
    models = known_models().models
    assert sum(model.works for model in models) >= 0.85 * len(models)
    assert all(model.why_not for model in models if not model.works)
    assert {model.batches for model in models if model.works} == {"together", "one by one"}


def test_mlx_lm_is_no_newer_than_the_one_that_was_tried(root: Path) -> None:
    dependencies = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    (needed,) = (line for line in dependencies if line.startswith("mlx-lm"))
    assert needed.endswith(f"<={known_models().versions['mlx-lm']}")


def test_it_loads_no_mlx() -> None:
    program = "import sys, draftloop.models.matrix as m; m.known_models(); print('mlx.core' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
