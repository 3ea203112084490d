"""Read and check an adapter directory in mlx-lm's format: its configuration and its weights' header. Imports no mlx.

`adapters.safetensors` holds A and B of each adapted layer; `adapter_config.json` says how to rebuild the layers.
Directories come from elsewhere too: nothing in them is taken on trust, and a refusal names the field or the leaf.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat, ValidationError
from safetensors import SafetensorError, safe_open

from ..config import Lora
from ..errors import AdapterError
from ..store.files import check_readable

WEIGHTS = "adapters.safetensors"
CONFIG = "adapter_config.json"
MAX_RANK = 1 << 14
_MAX_CONFIG_BYTES = 1 << 20
_FLOATS = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}  # and their exponents' bits
_CHUNK_BYTES = 1 << 22

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class AdapterConfig:
    """What mlx-lm needs to rebuild an adapter's layers.

    Attributes:
        rank: columns of A and rows of B.
        scale: factor on the update.
        dropout: on the update's input, in training only.
        num_layers: how many of the last layers are adapted; -1 is all.
        keys: names of the adapted modules, within a layer or in the whole model; None is all linear ones of the layers.
    """

    rank: int
    scale: float
    dropout: float = 0.0
    num_layers: int = -1
    keys: tuple[str, ...] | None = None

    @classmethod
    def of(cls, lora: Lora) -> AdapterConfig:
        """The shape that the configuration asks for."""
        return cls(lora.rank, lora.scale, lora.dropout, lora.num_layers)

    def to_json(self) -> dict[str, Any]:
        """The content of `adapter_config.json`."""
        parameters: dict[str, Any] = {"rank": self.rank, "scale": self.scale, "dropout": self.dropout}
        if self.keys is not None:
            parameters["keys"] = list(self.keys)
        return {"fine_tune_type": "lora", "num_layers": self.num_layers, "lora_parameters": parameters}


def read_config(directory: Path) -> AdapterConfig:
    """The checked `adapter_config.json` of an adapter directory.

    Raises:
        AdapterError: missing, unreadable, or a field that cannot be used.
        AccessDenied: this user may not read it.
    """
    path = directory / CONFIG
    check_readable(path)
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise AdapterError(f"{path}: larger than {_MAX_CONFIG_BYTES:,} bytes; is this an adapter's configuration?")
        parsed = json.loads(path.read_bytes())
    except OSError as error:
        raise AdapterError(f"{directory} is no adapter directory: {path.name}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: not JSON ({error})") from None
    return parse_config(parsed, str(path))


class _Parameters(BaseModel):
    rank: Annotated[int, Field(strict=True, ge=1, le=MAX_RANK)]
    scale: Annotated[FiniteFloat, Field(strict=True)]
    dropout: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    keys: Annotated[list[str], Field(min_length=1)] | None = None


class _AdapterJson(BaseModel):
    """The fields that rebuild the layers; those that only mlx-lm's own training reads are passed over."""

    fine_tune_type: Literal["lora"] = "lora"
    num_layers: Annotated[int, Field(strict=True, ge=-1, le=1 << 20)]
    lora_parameters: _Parameters


def parse_config(parsed: object, where: str) -> AdapterConfig:
    """The adapter's shape from parsed JSON.

    Raises:
        AdapterError: a field is missing or out of range, named together with `where`.
    """
    try:
        config = _AdapterJson.model_validate(parsed)
    except ValidationError as error:
        first = error.errors()[0]
        names, given = [part for part in first["loc"] if isinstance(part, str)], first["input"]
        name = names[-1] if names else "the whole"
        if first["type"] == "model_type":
            raise AdapterError(f"{where}: {name}: found {type(given).__name__}, expected an object") from None
        if first["type"] == "missing":
            raise AdapterError(f"{where}: {name} is None, expected a value") from None
        expected = first["msg"].replace("Input should be", "expected").replace("List should have", "expected")
        raise AdapterError(f"{where}: {name} is {given!r}, {expected}") from None
    shape = config.lora_parameters
    keys = None if shape.keys is None else tuple(shape.keys)
    return AdapterConfig(shape.rank, float(shape.scale), shape.dropout, config.num_layers, keys)


def read_shapes(directory: Path) -> Shapes:
    """Shapes of the leaves by name, from the header alone: safetensors' own reader refuses what MLX would read past.

    Raises:
        AdapterError: missing, damaged, or a leaf that holds no floating-point numbers.
    """
    path = directory / WEIGHTS
    check_readable(path)
    try:
        with safe_open(str(path), framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            types = {name: part.get_dtype() for name, part in slices.items()}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} cannot be read as safetensors: {' '.join(str(error).split())}") from None
    wrong = next((name for name in sorted(types) if types[name] not in _FLOATS), None)
    if wrong is not None:
        raise AdapterError(f"{path}: {wrong} is {types[wrong]}, expected 32-bit or 16-bit floating point")
    return shapes


def check_finite(directory: Path) -> None:
    """Refuse weights with a NaN or an infinity: what all bits of the exponent being set means. Memory stays bounded.

    Args:
        directory: `read_shapes` has accepted its weights.

    Raises:
        AdapterError: naming the first such leaf; or the file cannot be read.
    """
    path = directory / WEIGHTS
    try:
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start - 8))
            for name in sorted(header.keys() - {"__metadata__"}):
                kind, exponent = _FLOATS[header[name]["dtype"]]
                begin, end = header[name]["data_offsets"]
                file.seek(start + begin)
                sizes = (min(_CHUNK_BYTES, end - at) for at in range(begin, end, _CHUNK_BYTES))
                chunks = (file.read(size) for size in sizes)
                if any(np.any((np.frombuffer(chunk, kind) & exponent) == exponent) for chunk in chunks):
                    raise AdapterError(f"{path}: {name} holds NaN or infinity; the adapter is damaged")
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror or error}") from None


def check_leaves(shapes: Shapes, expected: Shapes, where: str) -> None:
    """Raise AdapterError, naming the first leaf that is missing, has no place, or has another shape than expected."""
    for name in sorted(expected.keys() | shapes.keys()):
        if name not in shapes:
            raise AdapterError(f"{where}: {name} is missing; the adapter is incomplete or made for another draft")
        if name not in expected:
            raise AdapterError(f"{where}: {name} has no place in this draft; was the adapter made for another one?")
        if shapes[name] != expected[name]:
            raise AdapterError(f"{where}: {name} has the shape {shapes[name]}, this draft needs {expected[name]}")
