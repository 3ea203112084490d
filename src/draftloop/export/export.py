"""Export a version of the adapter, alone or in its draft's weights, to a directory for plain mlx-lm. Knows no terminal.

version -> files in a temporary directory -> loaded back from there by mlx-lm -> export verification: acceptance on
held-out generations, against the bare draft and the draft with the adapter -> model card -> renamed into place. The
files themselves are measured: fusing rounds, and quantizing rounds a lot.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx_lm
from mlx.utils import tree_flatten

from .. import __version__
from ..config import Config
from ..data.records import GroupOf, Record, own_group
from ..data.usable import describe_counts
from ..errors import AdapterError, ExportError, PairError, PromptError, StoreError
from ..evaluation.benchmark import BASE, Sample, left_out, logged_samples
from ..models.adapter_format import read_config
from ..models.fingerprints import fingerprints
from ..models.hub import find_model
from ..models.loading import load_directory, widen_on_cpu
from ..models.manifest import MANIFEST, hash_files, make_manifest
from ..models.pair import Pair, check_tokenizers
from ..registry.registry import Registry, Version
from ..store.atomic import publish_directory, temporary_path, write_new
from ..store.files import FILES, Files, storing
from ..store.sealed_lines import dump, seal
from .fuse import FusedDraft, Quantization, write_fused
from .model_card import Card, write_card
from .verify import EXPORTED, Measured, below_in_words, measure_export

CARD = "README.md"

Say = Callable[[str], None]

Samples = tuple[list[Sample], str | None]
"""The outputs to measure on; where there are none, why."""


@dataclass(frozen=True)
class ExportPlan:
    """A checked export: which version, where to, and in what form; by `plan_export`."""

    version: Version
    destination: Path
    fuse: bool
    quantization: Quantization


@dataclass(frozen=True)
class Exported:
    """A finished export.

    Attributes:
        version: of the adapter; path: the new directory.
        fused: a whole draft; else an adapter alone.
        weights: how they are stored, for a person.
        quantization: as in the config of a fused draft; None where it has none.
        bits_per_weight: of a fused draft, scales included.
        fingerprint: of a fused draft.
        measured: None where there was nothing to measure on; not_measured says why.
        versions: of the software that wrote and measured it.
    """

    version: str
    path: str
    fused: bool
    weights: str
    quantization: dict[str, Any] | None
    bits_per_weight: float | None
    fingerprint: str | None
    measured: Measured | None
    not_measured: str | None
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`; `below_bare_draft` has the rules under which it is accepted less than that."""
        below = self.measured.below_bare_draft() if self.measured else []
        return {**asdict(self), "below_bare_draft": [change.rule for change in below]}


def plan_export(
    registry: Registry, reference: str, destination: Path, *, fuse: bool, quantization: Quantization
) -> ExportPlan:
    """Check everything that can be refused before a model is loaded.

    Args:
        registry: the adapters; the directory that holds them is the data directory.
        reference: `champion`, `latest`, `vNNNN`, or the directory of a version.
        destination: not there yet, or an empty directory.
        fuse: a whole draft instead of an adapter.
        quantization: of the whole draft.

    Raises:
        AdapterError: no such version, or it is damaged.
        ExportError: the destination is taken or in the data directory, or a quantization for an adapter alone.
    """
    if not fuse and quantization != Quantization():
        raise ExportError("an adapter alone has no quantization; --q-bits, --q-group-size and --dequantize need --fuse")
    version = _find(registry, reference)
    return ExportPlan(version, _free_place(destination, registry.root.parent), fuse, quantization)


def export_version(
    job: ExportPlan,
    pair: Pair,
    config: Config,
    held_out: Iterable[Record],
    say: Say = lambda _: None,
    files: Files = FILES,
    group_of: GroupOf = own_group,
) -> Exported:
    """Make the directory; it appears whole, or not at all.

    Args:
        job: by `plan_export`.
        pair: the models of `config`; afterwards its draft carries the adapter.
        config: names of the models, K, and the seed of the intervals.
        held_out: logged generations to measure on; those of other targets are left out.
        say: called with the work that begins.
        files: the seam.
        group_of: the joined prompt group of each of `held_out`.

    Raises:
        AdapterError: the version was made for another draft.
        ExportError: the draft cannot be quantized so, mlx-lm changes its weights when it loads them, or the adapter
            alone is wanted of a draft that is no model of its own.
        StoreError: the disk refused; nothing is left behind.
    """
    if pair.self_layers is not None and not job.fuse:
        raise ExportError(
            "this adapter lies on the target's own first layers, which are no model that mlx-lm could load it on; "
            "export them with the adapter in their weights: --fuse"
        )
    # An export has its whole head, whatever the draft may propose here: all that is compared with it has that, too.
    pair = replace(pair.with_adapter(job.version.path, job.version.name), vocabulary=None)
    place, records = job.destination, list(held_out)
    without = left_out(records, pair)
    if without:
        say(f"left out of the measurement: {describe_counts(without)}")
    samples: Samples = [], "no held-out generation"
    if records:
        try:
            samples = logged_samples(records, pair, group_of), None
        except PromptError:
            among = f"among {len(records)}"
            samples = [], f"no held-out generation of this target that the pair can be measured on {among}"
    with storing(place):
        files.make_directory(place.parent)
        temporary = temporary_path(place.parent)
        try:
            files.make_directory(temporary, new=True)
            made = _fill(temporary, job, pair, config, samples, say, files)
            with suppress(FileNotFoundError):
                place.rmdir()  # an empty one is allowed; if it is no longer empty, this refuses
            publish_directory(temporary, place, files)
        except BaseException:
            with suppress(OSError):
                files.remove(temporary)
            raise
    return made


def _find(registry: Registry, reference: str) -> Version:
    path = registry.resolve(reference)
    if path is None:
        raise AdapterError(
            f"{reference} is the bare draft, so there is no adapter to export; name one of `adapters list`, or let "
            "`retrain` find a champion"
        )
    manifest = registry.verify(path)
    if manifest is None:
        raise AdapterError(f"{path / MANIFEST} is missing; only versions that draftloop made are exported")
    odd = next((name for name in sorted(manifest.files) if not name.endswith((".safetensors", ".json"))), None)
    if odd is not None:
        raise AdapterError(f"{path} holds {odd[:60]!r}, which is no part of an adapter, and an export is data alone")
    return Version(manifest.name, path, manifest)


def _free_place(path: Path, data_directory: Path) -> Path:
    """The absolute path, if nothing is there that an export would be in the way of."""
    place = Path(os.path.abspath(path))  # noqa: PTH100 - `absolute` keeps `..`, and a rename needs a name
    try:
        real = Path(os.path.realpath(place))  # by whatever links, and however the letters are written
        inside = any(one.exists() and one.samefile(data_directory) for one in (real, *real.parents))
        free = _is_free(place)
    except (OSError, ValueError) as error:
        raise ExportError(f"{str(path)!r} cannot be exported to: {error}; give another directory") from None
    if inside:
        raise ExportError(
            f"{place} lies in the data directory {data_directory}, which holds what draftloop works with and may be "
            "deleted to forget; give a directory elsewhere"
        )
    if not free:
        raise ExportError(
            f"{place} is there already, and nothing is written over; give a directory that is not there yet, or empty"
        )
    return place


def _is_free(place: Path) -> bool:
    try:
        os.lstat(place)
    except FileNotFoundError:
        return True
    return place.is_dir() and not place.is_symlink() and not any(place.iterdir())


def _fill(
    directory: Path, job: ExportPlan, pair: Pair, config: Config, held_out: Samples, say: Say, files: Files
) -> Exported:
    say(f"writing {job.version.name}")
    written = _write(directory, job, pair, config, files)
    exported = _load_back(directory, job, pair, config)
    if written is not None:
        _check_as_written(directory, exported)
    samples, not_measured = held_out
    measured = None
    if samples:
        say(f"measuring on {len(samples)} held-out generations")
        adapter = (job.version.name, job.version.path)
        k, seed = config.speculative.num_draft_tokens, config.speculative.seed
        measured = measure_export(pair, exported, adapter, samples, k, seed=seed)
    if written is None:
        shape = read_config(job.version.path)
        weights = f"LoRA, rank {shape.rank}, scale {shape.scale:g}"
    else:
        bits, kind = f"{written.bits_per_weight:.3g} bits a weight", written.quantization
        weights = f"not quantized, {bits}"
        if kind is not None:
            weights = f"{kind['bits']} bits in groups of {kind['group_size']}, {bits} in all"
    made = Exported(
        version=job.version.name,
        path=str(job.destination),
        fused=job.fuse,
        weights=weights,
        quantization=written.quantization if written else None,
        bits_per_weight=written.bits_per_weight if written else None,
        fingerprint=exported.identity.draft if job.fuse else None,
        measured=measured,
        not_measured=not_measured,
        versions={
            "draftloop": __version__,
            "mlx": mx.__version__,
            "mlx-lm": mlx_lm.__version__,
            "python": platform.python_version(),
        },
    )
    card = write_card(_card(made, job, pair, config)).encode("utf-8", "replace")
    write_new(directory / CARD, card, files)
    return made


def _write(directory: Path, job: ExportPlan, pair: Pair, config: Config, files: Files) -> FusedDraft | None:
    """The files of a whole draft, or of the adapter, then proved to be the version's own."""
    version = job.version
    if job.fuse:
        source, trust = find_model(_source(pair, config)), config.models.trust_remote_code
        layers = None if pair.self_layers is None else pair.self_layers.layers
        return write_fused(
            source, version.path, directory, job.quantization, layers=layers, trust_remote_code=trust, files=files
        )
    for name in version.manifest.files:
        files.make_directory((directory / name).parent)
        files.produce(directory / name, partial(shutil.copyfile, version.path / name))
    hashes = hash_files(directory)
    if hashes != version.manifest.files:
        raise StoreError(f"{version.name} was not copied whole; nothing was exported")
    # A manifest that proves the files and names the draft; what was learned from, and where it lay, stays at home.
    own = version.manifest
    made_for = None if own.pair is None else pair.portable(own.pair)
    kept = {"created": own.created, "parent": own.parent, "pair": made_for, "draftloop_version": own.draftloop_version}
    write_new(directory / MANIFEST, seal(dump(make_manifest(kept, version.name, hashes))), files)
    return None


def _source(pair: Pair, config: Config) -> str:
    """The model that the draft is made of."""
    return config.models.draft if pair.self_layers is None else config.models.target


def _load_back(directory: Path, job: ExportPlan, pair: Pair, config: Config) -> Pair:
    """The pair with what was written as its draft, as anybody's mlx-lm loads it."""
    draft_path = directory if job.fuse else find_model(_source(pair, config))
    trust, adapter = (False, None) if job.fuse else (config.models.trust_remote_code, directory)
    try:
        draft, tokenizer, _ = load_directory(draft_path, trust_remote_code=trust, adapter=adapter)
    except PairError as error:
        raise StoreError(f"what was written cannot be loaded ({error}); nothing was exported") from error
    check_tokenizers(pair.tokenizer, tokenizer, pair.width)
    widen_on_cpu(draft)
    mx.eval(draft.parameters())
    draft.eval()
    identity = replace(pair.identity, draft=fingerprints(directory).model) if job.fuse else pair.identity
    return replace(pair, draft=draft, adapter=None, identity=identity)


def _check_as_written(directory: Path, exported: Pair) -> None:
    """Refuse a draft of which mlx-lm changes weights when it loads them: some models normalize their head then."""
    files = sorted(directory.glob("model*.safetensors"))
    stored = {name: leaf for file in files for name, leaf in cast(dict[str, mx.array], mx.load(str(file))).items()}
    for name, leaf in tree_flatten(exported.draft.parameters()):
        before = stored.get(name)
        if before is None or before.shape != leaf.shape:
            continue
        if not mx.array_equal(before.astype(leaf.dtype), leaf).item():
            raise ExportError(
                f"mlx-lm changes {name} of this draft when it loads it, so the draft with its adapter in the weights "
                "would be another one; export the adapter alone, without --fuse"
            )


def _card(made: Exported, job: ExportPlan, pair: Pair, config: Config) -> Card:
    manifest = job.version.manifest
    this = {"this model": made.fingerprint} if made.fingerprint else {}
    return Card(
        name=job.destination.name,
        target=config.models.target,
        draft=_source(pair, config),
        layers=None if pair.self_layers is None else pair.self_layers.layers,
        fused=job.fuse,
        version=job.version.name,
        parent=manifest.parent,
        created=manifest.created,
        records=len(manifest.record_ids),
        weights=made.weights,
        fingerprints={**asdict(pair.identity), **this},
        num_draft_tokens=config.speculative.num_draft_tokens,
        versions=made.versions,
        measured=made.measured,
        not_measured=made.not_measured,
        names={BASE: "bare draft", job.version.name: "draft + adapter", EXPORTED: "this export, from its files"},
        below=[below_in_words(change) for change in made.measured.below_bare_draft()] if made.measured else (),
    )
