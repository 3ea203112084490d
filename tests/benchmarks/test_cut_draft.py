"""A draft cut from a model is that model without its later layers."""

from __future__ import annotations

import json
from pathlib import Path

import benchmark_scripts
import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model

from draftloop.models.hub import find_model


def test_it_computes_what_the_models_first_layers_do(root: Path, tmp_path: Path) -> None:
    script = benchmark_scripts.load(root / "benchmarks" / "cut_draft.py")
    whole = find_model("embedded:target")
    script.cut(whole, 3, tmp_path / "draft")
    cut, _ = load_model(tmp_path / "draft")
    expected, _ = load_model(whole)
    expected.model.layers = expected.model.layers[:3]
    ids = mx.array([[5, 9, 3, 7]])
    assert len(cut.model.layers) == 3
    np.testing.assert_array_equal(*(np.array(model(ids).astype(mx.float32)) for model in (cut, expected)))
    assert (tmp_path / "draft" / "tokenizer.json").read_bytes() == (whole / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(("layers", "config"), [(0, {"num_hidden_layers": 9}), (9, {"num_hidden_layers": 9}), (2, {})])
def test_layers_that_are_not_there_are_refused(root: Path, tmp_path: Path, layers: int, config: dict) -> None:
    script = benchmark_scripts.load(root / "benchmarks" / "cut_draft.py")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match=f"expected a model of more than {layers} layers"):
        script.cut(tmp_path, layers, tmp_path / "draft")
    assert not (tmp_path / "draft").exists()
