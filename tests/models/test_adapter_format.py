"""Weights with a NaN or an infinity are refused by the bits of their exponents, whatever their type, and without MLX.

The rest of `adapter_format` is tested where adapters are attached, in test_lora.py.
"""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from draftloop.errors import AdapterError
from draftloop.models import adapter_format
from draftloop.models.adapter_format import WEIGHTS, check_finite, read_shapes

BITS = {
    "F32": ("I", {"nan": 0x7FC00000, "-nan": 0xFFC00000, "signalling nan": 0x7F800001, "inf": 0x7F800000}),
    "F16": ("H", {"nan": 0x7E00, "-nan": 0xFE00, "signalling nan": 0x7C01, "-inf": 0xFC00}),
    "BF16": ("H", {"nan": 0x7FC0, "-nan": 0xFFC0, "signalling nan": 0x7F81, "-inf": 0xFF80}),
}
LARGEST = {"F32": 0x7F7FFFFF, "F16": 0x7BFF, "BF16": 0x7F7F}
CASES = [(kind, name) for kind, (_, numbers) in BITS.items() for name in numbers]


def write(directory: Path, kind: str, numbers: list[int]) -> Path:
    """Two leaves, `a` all zeros and `b` of these bits, in one file."""
    code = BITS[kind][0]
    b = struct.pack(f"<{len(numbers)}{code}", *numbers)
    size = struct.calcsize(code)
    header = (
        f'{{"__metadata__":{{"format":"mlx"}},"b":{{"dtype":"{kind}","shape":[{len(numbers)}],"data_offsets":[0,{len(b)}]}},'
        f'"a":{{"dtype":"{kind}","shape":[4],"data_offsets":[{len(b)},{len(b) + 4 * size}]}}}}'
    ).encode()
    (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + b + bytes(4 * size))
    return directory


@pytest.mark.parametrize(("kind", "name"), CASES)
@pytest.mark.parametrize("at", [0, 3, 6])
def test_one_number_that_is_none_is_found_wherever_it_stands(tmp_path: Path, kind: str, name: str, at: int) -> None:
    numbers = [LARGEST[kind], 0, 1, LARGEST[kind], 0, 1, 0]
    numbers[at] = BITS[kind][1][name]
    write(tmp_path, kind, numbers)
    read_shapes(tmp_path)
    with pytest.raises(AdapterError, match=r"adapters\.safetensors: b holds NaN or infinity"):
        check_finite(tmp_path)


@pytest.mark.parametrize("kind", BITS)
def test_zeros_denormals_and_the_largest_numbers_are_fine(tmp_path: Path, kind: str) -> None:
    sign = 1 << (8 * struct.calcsize(BITS[kind][0]) - 1)
    numbers = [0, sign, 1, sign | 1, LARGEST[kind], sign | LARGEST[kind]]
    check_finite(write(tmp_path, kind, numbers))


@pytest.mark.parametrize("at", [7, 8, 15, 16])
def test_it_is_found_on_either_side_of_a_border_between_chunks(
    tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_format, "_CHUNK_BYTES", 32)
    numbers = [0] * 20
    numbers[at] = BITS["F32"][1]["nan"]
    with pytest.raises(AdapterError, match="holds NaN"):
        check_finite(write(tmp_path, "F32", numbers))


def test_memory_stays_bounded(tmp_path: Path) -> None:
    count = 16 << 20
    header = f'{{"a":{{"dtype":"F32","shape":[{count}],"data_offsets":[0,{4 * count}]}}}}'.encode()
    with (tmp_path / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 4 * count)  # 64 MB of zeros that take no room
    check_finite(tmp_path)
    tracemalloc.start()
    check_finite(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * adapter_format._CHUNK_BYTES


def test_the_bits_are_those_of_numbers_that_are_none() -> None:
    for name, bits in BITS["F32"][1].items():
        assert not np.isfinite(np.array([bits], np.uint32).view(np.float32)[0]), name
    assert np.isfinite(np.array([LARGEST["F32"]], np.uint32).view(np.float32)[0])
