"""Checkpoints of a run: written whole under a new name, then a pointer moves. Knows neither model nor plan.

`<run>/checkpoints/cNNNN/` holds `tensors.safetensors` (adapter, optimizer, random state, best weights) and
`progress.json` (position, scores, the tensors' sha256). `latest.json` names the one that counts; nothing is ever saved
over a live path.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from ..errors import RunError
from ..store.atomic import publish_directory, remove_leftovers, temporary_path, write_atomically, write_new
from ..store.files import FILES, Files, reading, storing

if TYPE_CHECKING:
    import mlx.core as mx  # only where tensors are: `status` looks for checkpoints without MLX

TENSORS = "tensors.safetensors"
PROGRESS = "progress.json"
LATEST = "latest.json"
_NAME = re.compile(r"c[0-9]{4,}")


class Checkpoints:
    """The checkpoints under `directory`, of which one process at a time writes.

    Args:
        directory: made at the first save.
        files: the seam for the operations that change something.
    """

    def __init__(self, directory: Path, files: Files = FILES) -> None:
        self.directory = directory
        self._files = files

    def save(self, tensors: dict[str, mx.array], progress: dict[str, Any]) -> Path:
        """Make a checkpoint and forget the older ones.

        Raises:
            StoreError: the disk refused; the checkpoint before still counts.
        """
        import mlx.core as mx

        with storing(self.directory):
            # 1. The directory, and the name after the last one.
            self._files.make_directory(self.directory)
            remove_leftovers(self.directory, self._files)
            numbers = [int(path.name[1:]) for path in self.directory.glob("c*") if _NAME.fullmatch(path.name)]
            checkpoint = self.directory / f"c{max(numbers, default=0) + 1:04d}"
            # 2. The checkpoint, whole under a temporary name before it gets its own.
            temporary = temporary_path(self.directory)
            self._files.make_directory(temporary)
            try:
                self._files.produce(temporary / TENSORS, lambda path: mx.save_safetensors(path, tensors))
                content = {**progress, "sha256": _sha256(temporary / TENSORS)}
                write_new(temporary / PROGRESS, orjson.dumps(content, option=orjson.OPT_SORT_KEYS), self._files)
                publish_directory(temporary, checkpoint, self._files)
            except BaseException:
                with suppress(OSError):  # failing that, the next save removes it
                    self._files.remove(temporary)
                raise
            # 3. From here on it counts, and the older ones do not.
            write_atomically(self.directory / LATEST, orjson.dumps({"checkpoint": checkpoint.name}), self._files)
            for path in self.directory.glob("c*"):
                if path != checkpoint:
                    self._files.remove(path)
        return checkpoint

    def load(self) -> tuple[dict[str, mx.array], dict[str, Any]]:
        """Tensors, evaluated, and progress of the checkpoint that counts.

        Raises:
            RunError: there is none, or it is damaged.
        """
        with self._reading():
            path, progress = self._latest()
            found, expected = _sha256(path / TENSORS), progress.pop("sha256")
        if found != expected:
            raise RunError(f"{path / TENSORS} is damaged: its sha256 is not the one written; start a new training")
        import mlx.core as mx

        tensors: dict[str, mx.array] = mx.load(str(path / TENSORS))
        mx.eval(tensors)
        return tensors, progress

    def step(self) -> int:
        """Optimizer steps made at the checkpoint that counts. Raises RunError: there is none, or it is damaged."""
        with self._reading():
            return int(self._latest()[1]["step"])

    def exist(self) -> bool:
        """Whether there is one to go on from."""
        return (self.directory / LATEST).is_file()

    def remove(self) -> None:
        """Forget all of them."""
        with storing(self.directory):
            self._files.remove(self.directory)

    def _latest(self) -> tuple[Path, dict[str, Any]]:
        name = str(orjson.loads((self.directory / LATEST).read_bytes())["checkpoint"])
        if not _NAME.fullmatch(name):
            raise ValueError(f"{LATEST} names {name[:80]!r}")
        return self.directory / name, orjson.loads((self.directory / name / PROGRESS).read_bytes())

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            with reading(self.directory):
                yield
        except FileNotFoundError as error:
            raise RunError(f"{error.filename} is missing: this run left no checkpoint; start a new training") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"the checkpoint in {self.directory} is damaged ({error}); start a new training") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
