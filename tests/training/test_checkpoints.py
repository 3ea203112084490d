from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import orjson
import pytest
from builders import CountingFiles, failing_files

from draftloop.errors import RunError, StoreError
from draftloop.training.checkpoints import Checkpoints


def tensors(value: float) -> dict[str, mx.array]:
    return {"adapter.a": mx.full((3, 2), float(value)), "optimizer.step": mx.array(int(value), mx.uint64)}


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert not checkpoints.exist()
    checkpoints.save(tensors(3), {"step": 3, "best": None, "seconds": 0.1 + 0.2})
    assert checkpoints.exist()
    found, progress = checkpoints.load()
    assert progress == {"step": 3, "best": None, "seconds": 0.1 + 0.2}
    assert {name: (value.dtype, value.tolist()) for name, value in found.items()} == {
        "adapter.a": (mx.float32, [[3.0, 3.0]] * 3),
        "optimizer.step": (mx.uint64, 3),
    }


def test_only_the_newest_is_kept_and_none_is_saved_over(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    first = checkpoints.save(tensors(1), {"step": 1})
    held, _ = checkpoints.load()
    second = checkpoints.save(tensors(2), {"step": 2})
    assert first != second
    assert not first.exists()
    assert held["adapter.a"].tolist() == [[1.0, 1.0]] * 3
    assert checkpoints.load()[1] == {"step": 2}


def test_a_full_disk_at_any_operation_leaves_a_checkpoint_that_loads(tmp_path):
    probe = CountingFiles()
    Checkpoints(tmp_path / "probe").save(tensors(1), {"step": 1})
    Checkpoints(tmp_path / "probe", probe).save(tensors(2), {"step": 2})
    assert len(probe.names) > 10
    for at in range(1, len(probe.names) + 1):
        directory = tmp_path / str(at)
        Checkpoints(directory).save(tensors(1), {"step": 1})
        with pytest.raises(StoreError):
            Checkpoints(directory, failing_files(at, for_good=True)).save(tensors(2), {"step": 2})
        found, progress = Checkpoints(directory).load()
        assert progress["step"] == found["optimizer.step"].item() in (1, 2)
        Checkpoints(directory).save(tensors(3), {"step": 3})
        assert Checkpoints(directory).load()[1] == {"step": 3}
        assert len(list(directory.glob("c*"))) == 1
        assert not list(directory.glob(".tmp-*"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root, path: flip(path / "tensors.safetensors"), "sha256"),
        (lambda root, path: (path / "tensors.safetensors").unlink(), "is missing"),
        (lambda root, path: (path / "progress.json").write_bytes(b"{"), "damaged"),
        (lambda root, path: (path / "progress.json").write_bytes(b"[]"), "damaged"),
        (lambda root, path: (root / "latest.json").write_bytes(orjson.dumps({})), "damaged"),
        (lambda root, path: (root / "latest.json").unlink(), "is missing"),
    ],
)
def test_damage_is_refused(tmp_path, damage, message):
    checkpoints = Checkpoints(tmp_path)
    damage(tmp_path, checkpoints.save(tensors(1), {"step": 1}))
    with pytest.raises(RunError, match=message):
        checkpoints.load()


def test_a_disk_that_is_full_for_mlx_itself_is_a_store_error(tmp_path, monkeypatch):
    def refuse(*_args):
        raise RuntimeError("[write] Unable to write 100 bytes to file.")

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(tensors(1), {"step": 1})
    monkeypatch.setattr(mx, "save_safetensors", refuse)
    with pytest.raises(StoreError, match="Unable to write"):
        checkpoints.save(tensors(2), {"step": 2})
    assert checkpoints.load()[1] == {"step": 1}


def test_removing_them_leaves_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(tensors(1), {"step": 1})
    checkpoints.remove()
    assert not checkpoints.exist()
    assert not (tmp_path / "checkpoints").exists()
