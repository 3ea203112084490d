"""Write a draft that is the first layers of a model: python benchmarks/cut_draft.py MODEL LAYERS FOLDER

It has the model's embedding, last norm, head and tokenizer, so that any model comes with a draft that shares its
vocabulary. Nothing in it is trained to be followed by the head, so it proposes next to nothing that is accepted.
"""

from __future__ import annotations

import prepared  # noqa: F401

# isort: split
import argparse
import json
import re
import shutil
from pathlib import Path

import mlx.core as mx

from draftloop.models.cut_config import count_layers, cut_config
from draftloop.models.hub import find_model

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="name or directory")
    parser.add_argument("layers", type=int, help="how many, from the first on")
    parser.add_argument("folder", type=Path, help="a new directory")
    given = parser.parse_args()
    cut(find_model(given.model), given.layers, given.folder)


def cut(model: Path, layers: int, folder: Path) -> None:
    """Write the draft.

    Args:
        model: directory in mlx-lm's format whose layers are called `layers`.
        layers: how many are kept, from the first on.
        folder: is made.

    Raises:
        SystemExit: the model has not so many layers, or its config does not say how many.
    """
    config = json.loads((model / "config.json").read_text())
    count = count_layers(config)
    if count is None or not 1 <= layers < count:
        raise SystemExit(f"{model}: expected a model of more than {layers} layers")
    weights: dict[str, mx.array] = {}
    for path in sorted(model.glob("model*.safetensors")):
        loaded = mx.load(str(path))
        assert isinstance(loaded, dict)
        weights |= {name: values for name, values in loaded.items() if _is_kept(name, layers)}
    folder.mkdir(parents=True)
    for path in model.iterdir():
        if path.is_file() and not path.name.startswith("model"):
            shutil.copyfile(path, folder / path.name)
    (folder / "config.json").write_text(json.dumps(cut_config(config, layers), indent=1))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})


def _is_kept(name: str, layers: int) -> bool:
    found = _LAYER.search(name)
    return found is None or int(found[1]) < layers


if __name__ == "__main__":
    main()
