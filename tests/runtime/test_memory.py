"""What the device has, what of it is allowed, and how a want of memory is told from other errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from mortal import HANGS

from draftloop.runtime import memory
from draftloop.runtime.memory import AUTO_SHARE, CACHE_SHARE, GIGABYTE, Budget, DeviceMemory

DEVICE = DeviceMemory(10 * GIGABYTE, "available RAM")

_FAILED = "[METAL] Command buffer execution failed:"
REFUSALS = [
    "[metal::malloc] Attempting to allocate 41943 bytes which is greater than the maximum allowed buffer size of 9.",
    f"{_FAILED} Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory).",
    f"{_FAILED} Zu wenig Speicher (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory).",
    "[malloc] Unable to allocate 16384 bytes.",
    "[metal::malloc] Resource limit (499000) exceeded.",
    "cudaMallocAsync(&data, size, stream) failed: out of memory",
    "cudaGraphLaunch(graph, stream) failed: out of memory",
    "std::bad_alloc",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_a_want_of_memory_is_known_by_the_words_of_each_backend(text: str) -> None:
    assert memory.is_out_of_memory(RuntimeError(text))


def test_pythons_own_is_known_too() -> None:
    assert memory.is_out_of_memory(MemoryError())


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[matmul] Last dimension of first input with shape (2,3) must match second to last"),
        RuntimeError("[load] Failed to open file out.safetensors"),
        RuntimeError("[METAL] Command buffer execution failed: Caused GPU Timeout Error."),
        RuntimeError("Resource limit of the service reached"),
        ValueError("out of memory"),
    ],
)
def test_other_errors_are_none(error: Exception) -> None:
    assert not memory.is_out_of_memory(error)


def test_auto_is_a_share_of_what_is_there_and_no_promise() -> None:
    assert memory.budget("auto", DEVICE) == Budget(int(AUTO_SHARE * DEVICE.bytes), strict=False)


@pytest.mark.parametrize(("setting", "allowed"), [(2.5, 2.5), (10.0, 10.0), (64.0, 10.0)])
def test_a_number_is_a_promise_and_never_more_than_there_is(setting: float, allowed: float) -> None:
    assert memory.budget(setting, DEVICE) == Budget(int(allowed * GIGABYTE), strict=True)


def test_a_gigabyte_is_what_it_says_in_settings_and_in_what_is_shown() -> None:
    assert (memory.GIGABYTE, memory.MEGABYTE) == (10**9, 10**6)
    assert memory.budget(1.0, DEVICE).bytes == 1_000_000_000
    assert str(Budget(2_048_000_000, strict=True)) == "2.05 GB"
    mac = DeviceMemory(2 * 16 * 2**30 // 3, "Metal's recommended working set")
    assert (memory.gigabytes(16 * 2**30), str(memory.budget("auto", mac))) == ("17.2", "9.16 GB")


def test_of_two_settings_the_smaller_counts() -> None:
    assert memory.smaller("auto", None) == "auto"
    assert memory.smaller("auto", 3.0) == 3.0
    assert memory.smaller(2.0, 3.0) == 2.0
    assert memory.smaller(4.0, 3.0) == 3.0
    assert memory.smaller(4.0, None) == 4.0


def test_metal_says_a_working_set_for_the_whole_process() -> None:
    found = memory.of_gpu({"max_recommended_working_set_size": 8 * GIGABYTE, "memory_size": 16 * GIGABYTE}, GIGABYTE)
    assert found == DeviceMemory(8 * GIGABYTE, "Metal's recommended working set")


def test_cuda_says_what_is_free_beside_what_is_held() -> None:
    found = memory.of_gpu({"free_memory": 7 * GIGABYTE, "total_memory": 24 * GIGABYTE}, GIGABYTE)
    assert found == DeviceMemory(8 * GIGABYTE, "free memory of the CUDA device")


def test_ram_is_what_the_kernel_calls_available() -> None:
    assert memory.of_meminfo("MemTotal: 100 kB\nMemFree: 10 kB\nMemAvailable:   60 kB\n") == 60 * 1024


@pytest.mark.parametrize(
    ("limit", "used", "reclaimable", "left"),
    [
        ("max", "5", 0, None),
        ("9223372036854771712", "5", 0, None),
        ("100", "70", 0, 30),
        ("100", "70", 20, 50),
        ("100", "130", 0, 0),
    ],
)
def test_a_containers_limit_counts_without_its_cached_files(
    limit: str, used: str, reclaimable: int, left: int | None
) -> None:
    assert memory.of_container(limit, used, reclaimable) == left


def cgroup(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"memory.stat": "anon 5\ninactive_file 20\ntotal_inactive_file 20\n", **files}.items():
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    "files",
    [
        {"memory.max": "100\n", "memory.current": "70\n"},
        {"memory.limit_in_bytes": "100\n", "memory.usage_in_bytes": "70\n"},
    ],
    ids=["version 2", "version 1"],
)
def test_both_versions_of_control_groups_are_read(tmp_path: Path, files: dict[str, str]) -> None:
    assert list(memory._containers([cgroup(tmp_path, files), tmp_path / "none"])) == [50]


def test_the_device_of_this_machine_has_something_to_give() -> None:
    found = memory.read_device()
    assert found.bytes > 64 << 20
    assert found.figure


@pytest.mark.skipif(sys.platform != "linux", reason="the address space is bounded on Linux")
def test_a_bound_on_the_address_space_counts() -> None:
    """As `ulimit -v` sets it on shared machines; MLX on a CPU dies by a signal where the system refuses it memory."""
    program = (
        "import resource\nimport mlx.core as mx\nfrom draftloop.runtime import memory\nmemory.release()\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize() + (300 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size, size))\n"
        "mx.set_default_device(mx.cpu)\nfound = memory.read_device()\nprint(found.bytes >> 20, found.figure)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=HANGS, env=_environment(), check=True
    )
    size, figure = done.stdout.strip().split(" ", 1)
    assert 200 <= int(size) <= 301
    assert "ulimit" in figure


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}


def test_the_allocators_cache_stays_within_its_share_and_the_limits_come_back() -> None:
    allowed = Budget(16 << 20, strict=True)
    limits = mx.set_memory_limit(1 << 40), mx.set_cache_limit(1 << 30)
    try:
        with memory.limited(allowed):
            for size in range(20):
                mx.eval(mx.ones(((size + 1) << 18,)) + 1)  # buffers of up to 5 MB, freed at once
                assert mx.get_cache_memory() <= CACHE_SHARE * allowed.bytes
            assert mx.get_cache_memory() > 0
        assert (mx.set_memory_limit(limits[0]), mx.set_cache_limit(limits[1])) == (1 << 40, 1 << 30)
    finally:
        mx.set_memory_limit(limits[0])
        mx.set_cache_limit(limits[1])


def test_a_limit_that_was_lower_stays() -> None:
    before = mx.set_cache_limit(1 << 10)
    try:
        with memory.limited(Budget(GIGABYTE, strict=False)):
            assert mx.set_cache_limit(1 << 10) == 1 << 10
    finally:
        mx.set_cache_limit(before)
