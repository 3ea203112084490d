"""What MLX frees on a Linux CPU stays with the process until it is given back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from draftloop.runtime import blas
from draftloop.runtime import malloc as heap

pytestmark = pytest.mark.skipif(not blas.is_needed(), reason="MLX has a cache of its own elsewhere")

PAGES_TOUCHED = """
import resource
from draftloop import prepare_process
prepare_process()
import mlx.core as mx
ones = mx.ones((4, 1024, 1024))  # 16 MB
def step() -> None:
    more = ones + 1.0
    mx.eval(mx.exp(more * 2.0) + more)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
LEFT_BEHIND = """
from pathlib import Path
import os
from draftloop import prepare_process
prepare_process()
import mlx.core as mx
from draftloop.runtime import malloc as heap
def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before = resident()
many = [mx.ones((1024, 1024)) for _ in range(300)]
mx.eval(many)
held = resident() - before
del many
heap.give_back()
print(held, resident() - before)
"""


def run(script: str, root: Path, **environment: str) -> list[int]:
    everything = {**os.environ, "PYTHONPATH": str(root / "src"), **environment}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=everything)
    return [int(word) for word in done.stdout.split()]


def test_arrays_like_those_before_cost_no_new_pages(root: Path) -> None:
    arrays = 20 * (16 << 20) // os.sysconf("SC_PAGE_SIZE")  # pages of one array of each step
    assert run(PAGES_TOUCHED, root)[0] < arrays / 2
    assert run(PAGES_TOUCHED, root, MALLOC_TRIM_THRESHOLD_="131072")[0] > arrays  # glibc was told otherwise


def test_what_is_kept_can_be_given_back(root: Path) -> None:
    held, left = run(LEFT_BEHIND, root)
    assert held > 1_000 << 20
    assert left < 100 << 20


def test_a_user_who_told_glibc_how_is_not_overruled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072")
    assert not heap.keep_freed()
