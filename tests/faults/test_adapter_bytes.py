"""Adapters of bad bytes, versions with a manifest and directories from elsewhere without one: refused, and no crash.

They are loaded in a process of its own, so that a crash would be its return code and not the end of the tests.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from fault_table import Row
from mortal import environment, python
from safetensors.numpy import load
from tiny import tiny_llama

from draftloop.errors import AdapterError
from draftloop.models import adapter as lora
from draftloop.models.adapter_format import CONFIG, WEIGHTS, AdapterConfig
from draftloop.models.manifest import MANIFEST
from draftloop.registry.registry import Registry

pytestmark = pytest.mark.row("bad adapter bytes")

LOADER = """
import json, sys
from pathlib import Path
from draftloop.models import adapter as lora
from draftloop.errors import AdapterError
from draftloop.models.manifest import verify_adapter
from tiny import tiny_llama
import hashlib

def weights(model):
    digest = hashlib.sha256()
    for name, value in sorted(lora.adapter_parameters(model).items()):
        digest.update(name.encode() + bytes(memoryview(value)))
    return digest.hexdigest()

cases, directories = Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
draft = tiny_llama(seed=2)
for case in sorted(cases.iterdir()):
    found = {"case": case.name}
    for directory in directories:
        (directory / "adapters.safetensors").write_bytes(case.read_bytes())
        for way, attempt in (("verify", verify_adapter), ("attach", lambda path: lora.attach_directory(draft, path))):
            try:
                attempt(directory)
                found[f"{directory.name} {way}"] = {"loaded": weights(draft) if way == "attach" else ""}
            except AdapterError as error:
                found[f"{directory.name} {way}"] = {"refused": str(error)}
    print(json.dumps(found), flush=True)
"""


def mutated(data: bytes, choose: random.Random) -> bytes:
    """`data` cut or grown somewhere, or with a few bytes changed, half of the time in the header."""
    kind = choose.random()
    if kind < 0.2:
        return data[: choose.randrange(len(data))]
    if kind < 0.3:
        at = choose.randrange(len(data) + 1)
        return data[:at] + choose.randbytes(choose.randint(1, 9)) + data[at:]
    changed, header = bytearray(data), min(len(data), 8 + int.from_bytes(data[:8], "little"))
    for at in {choose.randrange(choose.choice([9, header, len(data)])) for _ in range(choose.randint(1, 4))}:
        changed[at] ^= choose.randrange(1, 256)
    return bytes(changed)


def header_of(data: bytes) -> Any:
    """Type, shape and place of every leaf, read without any library of ours; None where they cannot be read."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")].decode())
        return {name: value for name, value in header.items() if name != "__metadata__"}
    except (ValueError, AttributeError):
        return None


def is_sound(data: bytes, good: bytes) -> bool:
    """Whether a file without a manifest may be loaded: another header has no place, nor has a number that is none."""
    if header_of(data) != header_of(good) or len(data) - 8 - int.from_bytes(data[:8], "little") != body_length(good):
        return False
    return all(np.isfinite(leaf).all() for leaf in load(data).values())


def digest(data: bytes) -> str:
    """Of every leaf, as the loader takes it of what the model then carries."""
    leaves = sorted(load(data).items())
    return hashlib.sha256(b"".join(name.encode() + leaf.tobytes() for name, leaf in leaves)).hexdigest()


def body_length(data: bytes) -> int:
    return len(data) - 8 - int.from_bytes(data[:8], "little")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """One version, a real adapter of the small draft."""
    draft = tiny_llama(seed=2)
    lora.attach_fresh(draft, AdapterConfig(rank=2, scale=2.0), seed=0)
    lora.load_parameters(
        draft, {name: mx.random.normal(leaf.shape) for name, leaf in lora.adapter_parameters(draft).items()}
    )
    registry = Registry(tmp_path_factory.mktemp("adapters"))
    registry.create(lambda path: lora.save_adapter(draft, path), {})
    return registry


def test_mutated_weights_load_nowhere_where_a_hash_or_a_header_is_wrong_and_crash_nothing(
    tmp_path: Path, registry: Registry, row: Row
) -> None:
    version, foreign, cases = registry.root / "v0001", tmp_path / "foreign", tmp_path / "cases"
    foreign.mkdir()
    cases.mkdir()
    (foreign / CONFIG).write_bytes((version / CONFIG).read_bytes())
    good, choose = (version / WEIGHTS).read_bytes(), random.Random(3)
    bad = {f"{number:04d}": mutated(good, choose) for number in range(row.count(60, 500))}
    assert good not in bad.values()
    for name, data in bad.items():
        (cases / name).write_bytes(data)
    done = subprocess.run(
        python("-c", LOADER, cases, version, foreign), env=environment(), check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (version / WEIGHTS).write_bytes(good)
    loaded = 0
    for line in done.stdout.splitlines():
        found = json.loads(line)
        data = bad[found["case"]]
        assert "adapters.safetensors is damaged" in found["v0001 verify"]["refused"]
        sound = is_sound(data, good)
        assert ("loaded" in found["foreign attach"]) == sound, found
        assert not sound or found["foreign attach"]["loaded"] == digest(data)
        assert not sound or "loaded" in found["foreign verify"]
        loaded += sound
    assert len(done.stdout.splitlines()) == len(bad)
    assert 0 < loaded < len(bad) / 2  # changed numbers cannot be seen without a hash; everything else can
    row.did(len(bad), "mutated weights, with a manifest and without")


def test_mutated_manifests_and_configurations_never_pass_and_never_crash(registry: Registry, row: Row) -> None:
    version, choose, cases = registry.root / "v0001", random.Random(4), row.count(60, 500)
    for name in (MANIFEST, CONFIG):
        path = version / name
        good = path.read_bytes()
        for _ in range(cases):
            bad = mutated(good, choose)
            path.write_bytes(bad)
            if bad not in (good, good[:-1]):  # the last byte of a manifest is only a newline
                with pytest.raises(AdapterError, match=name.split(".")[0]):
                    registry.verify(version)
        path.write_bytes(good)
        registry.verify(version)
        row.did(cases, f"mutated {name}")
