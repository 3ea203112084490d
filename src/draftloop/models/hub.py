"""Find or download a model's directory by name, and fingerprint what is there. Imports no mlx."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from .. import reference
from ..config import Models
from ..errors import PairError
from ..store.files import reading
from .fingerprints import Fingerprints, fingerprint_of_cut, fingerprints
from .names import ModelNames

_EMBEDDED = {"embedded:target": reference.TARGET, "embedded:draft": reference.DRAFT}


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
    if (odd := _endless(path)) is not None:
        raise PairError(f"{odd} is a pipe or a device; expected a file of a model, or a link to one")
    if not (path / "config.json").is_file():
        raise PairError(f"{path} holds no config.json; expected a model directory in mlx-lm's format")
    if not list(path.glob("model*.safetensors")):
        raise PairError(f"{path} holds no model*.safetensors; other weight formats are not read")
    return path


def local_fingerprints(name: str) -> Fingerprints | None:
    """Those of a model that is on this machine already; None where it would have to be downloaded."""
    path = _local(name)
    return None if path is None else fingerprints(path)


def local_pair(models: Models, names: ModelNames) -> tuple[Fingerprints | None, Fingerprints | None]:
    """Those of target and draft; None where one would have to be downloaded, or is still to be cut from the target.

    Raises:
        StoreError: what the data directory knows of a self-draft cannot be read.
    """
    target = local_fingerprints(models.target)
    if not models.is_self or target is None:
        return target, None if models.is_self else local_fingerprints(models.draft)
    layers = models.self_layers
    if layers is None:
        kept = names.self_layers.of(names.of(target))
        layers = None if kept is None else kept.layers
    return target, None if layers is None else fingerprint_of_cut(target, layers)


def is_local(name: str) -> bool:
    """Whether a model is on this machine already."""
    return _local(name) is not None


def _local(name: str) -> Path | None:
    path = _here(name)
    if not _exists(path):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            path = Path(snapshot_download(name, local_files_only=True))
        except (HFValidationError, LocalEntryNotFoundError):
            return None
    return path if (path / "config.json").is_file() and _endless(path) is None else None


def _endless(path: Path) -> Path | None:
    """A pipe or a device in a directory: it may have no end, and whoever reads it waits or takes memory for ever."""
    entries = (entry for pattern in ("*", "additional_chat_templates/*") for entry in path.glob(pattern))
    return next((one for one in sorted(entries) if one.exists() and not (one.is_file() or one.is_dir())), None)


def _here(name: str) -> Path:
    path = _EMBEDDED.get(name, Path(name))
    with suppress(RuntimeError):  # ~ of nobody
        path = path.expanduser()
    return path


def _exists(path: Path) -> bool:
    try:
        with reading(path):
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
