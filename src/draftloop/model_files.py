"""Where a model's files lie and what they are: names to directories, directories to fingerprints. Imports no mlx."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from . import reference
from .errors import PairError

_EMBEDDED = {"embedded:target": reference.TARGET, "embedded:draft": reference.DRAFT}
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json"),
)
_MEGABYTE = 1 << 20


def find_model(name: str) -> Path:
    """The local directory of a model; one with a Hugging Face id is downloaded on first use.

    Raises:
        PairError: neither a model directory nor a repository that can be had.
    """
    path = _here(name)
    if not _exists(path):
        if name.startswith(("embedded:", ".", "/", "~")) or name.count("/") != 1:
            raise PairError(
                f"model {name!r} is no directory here; expected a directory in mlx-lm's format, a Hugging Face id "
                f"(owner/name), or one of {', '.join(_EMBEDDED)}"
            )
        path = _download(name)
    if not (path / "config.json").is_file():
        raise PairError(f"{path} holds no config.json; expected a model directory in mlx-lm's format")
    if not list(path.glob("model*.safetensors")):
        raise PairError(f"{path} holds no model*.safetensors; other weight formats are not read")
    return path


def local_fingerprint(name: str) -> str | None:
    """The fingerprint of a model that is on this machine already; None where it would have to be downloaded."""
    path = _here(name)
    if not _exists(path):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            path = Path(snapshot_download(name, local_files_only=True))
        except (HFValidationError, LocalEntryNotFoundError):
            return None
    return fingerprint(path) if (path / "config.json").is_file() else None


def _here(name: str) -> Path:
    path = _EMBEDDED.get(name, Path(name))
    with suppress(RuntimeError):  # ~ of nobody
        path = path.expanduser()
    return path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file system takes
        return False


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS

    try:
        return Path(snapshot_download(name, allow_patterns=DEFAULT_ALLOW_PATTERNS))
    except Exception as error:  # each version of the hub's client has another HTTP library, with errors of its own
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PairError(
            f"model {name!r} is neither a directory here nor to be had from Hugging Face ({first_line}); "
            "check the name and the network, or give a local directory"
        ) from error


def fingerprint(path: Path) -> str:
    """sha256 over the config, and each shard's name, size, header, first and last megabyte: what a model is."""
    digest = hashlib.sha256((path / "config.json").read_bytes())
    for shard in sorted(path.glob("model*.safetensors")):
        size = shard.stat().st_size
        digest.update(f"{shard.name}:{size}:".encode())
        with shard.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
            file.seek(0)
            digest.update(file.read(min(size, 8 + header + _MEGABYTE)))
            file.seek(max(0, size - _MEGABYTE))
            digest.update(file.read())
    for name in _TOKENIZER_FILES:
        if (path / name).is_file():
            digest.update(name.encode() + (path / name).read_bytes())
    return digest.hexdigest()
