"""The memory budget of MLX on this machine, and how to know its out-of-memory errors. Knows no model and no training.

Metal has a recommended working set, CUDA reports what is free, and on a CPU this process may take what the machine,
its container and its own limit leave, whichever is least. MLX keeps to none of these limits by itself, and on a CPU a
signal ends it where the system refuses memory. So work must fit before it starts. Imports MLX only when called.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import malloc as heap

GIGABYTE, MEGABYTE = 10**9, 10**6
AUTO_SHARE = 0.8  # of the device: MLX does not count Python, the tokenizer, other programs, or fragmentation
CACHE_SHARE = 0.25  # of the budget, for buffers that MLX keeps for reuse

REFUSALS = (RuntimeError, MemoryError)
"""What MLX raises when it is out of memory, and for other reasons too: `is_out_of_memory` tells them apart."""

_CGROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  # cgroups of version 1 say a number like it for no limit
_OUT_OF_MEMORY = (
    "out of memory",  # CUDA: "cudaMallocAsync(&data, size, stream) failed: out of memory"
    "insufficient memory",  # Metal: "[METAL] Command buffer execution failed: Insufficient Memory (00000008:…)"
    "erroroutofmemory",  # … "kIOGPUCommandBufferCallbackErrorOutOfMemory", where the words are translated
    "unable to allocate",  # both: "[malloc] Unable to allocate 1000 bytes."
    "maximum allowed buffer size",  # "[metal::malloc] Attempting to allocate 1000 bytes which is greater than the …"
    "[metal::malloc] resource limit",  # more buffers than Metal counts
    "cudaerrormemoryallocation",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "bad_alloc",  # C++'s own, by any of MLX's bookkeeping
    "bad allocation",
)


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes that this process may use, including what it holds already; and which limit that is."""

    bytes: int
    figure: str


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes that MLX may hold; `strict` if a user set the number, which must then be kept."""

    bytes: int
    strict: bool

    def __str__(self) -> str:
        """In GB."""
        return f"{gigabytes(self.bytes)} GB"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of MLX is an out-of-memory error. Only its text says so: all of them are RuntimeErrors."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _OUT_OF_MEMORY)


def budget(setting: float | Literal["auto"], device: DeviceMemory) -> Budget:
    """The memory budget: the setting in GB, never more than the device has; `auto` is a share of the device."""
    if setting == "auto":
        return Budget(int(AUTO_SHARE * device.bytes), strict=False)
    return Budget(min(int(setting * GIGABYTE), device.bytes), strict=True)


def bytes_left(allowed: Budget) -> int:
    """Bytes of a budget that MLX does not hold yet."""
    import mlx.core as mx

    return max(0, allowed.bytes - int(mx.get_active_memory()))


def room_left(allowed: Budget) -> float:
    """Bytes for the caches of a batched generation: half of what is left, because its prompts take room too."""
    return bytes_left(allowed) / 2


def smaller(one: float | Literal["auto"], two: float | None) -> float | Literal["auto"]:
    """The smaller of two settings; None is no limit, and a number replaces `auto`."""
    if two is None:
        return one
    return two if one == "auto" else min(one, two)


def gigabytes(size: float) -> str:
    """A size in bytes, in GB with three digits that count."""
    return f"{size / GIGABYTE:.3g}"


def forget_peak() -> None:
    """Reset the peak."""
    import mlx.core as mx

    mx.reset_peak_memory()


def peak_gigabytes() -> float:
    """The most GB that MLX has held since `forget_peak`."""
    import mlx.core as mx

    return float(mx.get_peak_memory() / GIGABYTE)


@contextmanager
def limited(allowed: Budget) -> Iterator[None]:
    """Limit MLX to a budget, as far as it keeps one: it waits, and frees cached buffers, before it goes beyond.

    The cache of freed buffers is limited to CACHE_SHARE of the budget. Afterwards both limits are what they were, and
    the memory that the C library kept is returned to the system.
    """
    import mlx.core as mx

    most_cached = int(CACHE_SHARE * allowed.bytes)
    memory, cache = mx.set_memory_limit(allowed.bytes), mx.set_cache_limit(most_cached)
    try:
        mx.set_memory_limit(min(memory, allowed.bytes))
        mx.set_cache_limit(min(cache, most_cached))
        yield
    finally:
        mx.set_memory_limit(memory)
        mx.set_cache_limit(cache)
        heap.give_back()


def release() -> None:
    """Free what MLX, and the C library under it, keep for reuse."""
    import mlx.core as mx

    mx.clear_cache()
    heap.give_back()


def read_device() -> DeviceMemory:
    """The memory that MLX's default device lets this process use now."""
    import mlx.core as mx

    held = mx.get_active_memory() + mx.get_cache_memory()
    if mx.default_device() == mx.gpu:
        return of_gpu(mx.device_info(), held)
    heap.give_back()  # memory that is kept for reuse counts as free
    least = min(_ram(), key=lambda limit: limit.bytes)
    return DeviceMemory(held + least.bytes, least.figure)


def of_gpu(info: dict[str, str | int], held: int) -> DeviceMemory:
    """The memory that a GPU lets this process use.

    Args:
        info: as MLX reports it: `max_recommended_working_set_size` by Metal, `free_memory` by CUDA.
        held: bytes that MLX holds, which are not free any more.
    """
    if "max_recommended_working_set_size" in info:  # of the process, held or not
        return DeviceMemory(int(info["max_recommended_working_set_size"]), "Metal's recommended working set")
    return DeviceMemory(held + int(info["free_memory"]), "free memory of the CUDA device")


def of_meminfo(text: str) -> int:
    """Bytes that programs can still take, by the kernel's own estimate in /proc/meminfo."""
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in text.splitlines())}
    return 1024 * kilobytes["MemAvailable"]


def of_container(limit: str, used: str, reclaimable: int) -> int | None:
    """Bytes left below a container's limit; None where it has none.

    Args:
        limit, used: the contents of its files, in bytes; a limit may be `max`.
        reclaimable: the part of `used` that is cached files, which the kernel drops when memory is short.
    """
    if limit == "max" or int(limit) >= _UNLIMITED:
        return None
    return max(0, int(limit) - int(used) + reclaimable)


def _ram() -> Iterator[DeviceMemory]:
    """Every limit on what this process can still take, the machine's RAM first."""
    try:
        yield DeviceMemory(of_meminfo(Path("/proc/meminfo").read_text()), "available RAM")
    except (OSError, KeyError, ValueError):  # not Linux: what is free is unknown
        yield DeviceMemory(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "RAM")
    yield from (DeviceMemory(left, "left of the container's limit") for left in _containers(_cgroup_directories()))
    left = _address_space_left()
    if left is not None:
        yield DeviceMemory(left, "left of the process's own limit (ulimit -v)")


def _cgroup_directories() -> Iterator[Path]:
    """Of this process's group and of its parents; inside a container the own group is the root."""
    yield _CGROUPS
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                inner = _CGROUPS / controllers / path.lstrip("/")
                yield from (around for around in (inner, *inner.parents) if around.is_relative_to(_CGROUPS))


def _containers(directories: Iterable[Path]) -> Iterator[int]:
    for directory in dict.fromkeys(directories):
        for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            with suppress(OSError, ValueError):
                stat = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
                said, taken = ((directory / name).read_text().strip() for name in (limit, used))
                left = of_container(said, taken, int(stat.get(cached, 0)))
                if left is not None:
                    yield left


def _address_space_left() -> int | None:
    try:
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit == resource.RLIM_INFINITY:
            return None
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return None
    return max(0, limit - pages * os.sysconf("SC_PAGE_SIZE"))
