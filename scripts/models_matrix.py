"""Try every text model of the installed mlx-lm, and write what works: make models

Writes `src/draftloop/models/matrix.json`, which `draftloop models` prints and docs/models.md shows. A model works if it
can be built as a tiny one, its cache takes tokens back exactly, and its greedy outputs with a draft are mlx-lm's. With
`--full` as thoroughly as a release needs, and in hours; each row says how it was tried.
"""

from __future__ import annotations

# ruff: noqa: E402 - the process is prepared before anything imports MLX
from draftloop import prepare_process

prepare_process()

# isort: split
import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from mlx import nn
from mlx_lm.models.cache import make_prompt_cache

from draftloop.caches import NoWayBack, find_way, leaves_of
from draftloop.data.records import PairId
from draftloop.decoding.batch_probe import batches_exactly
from draftloop.errors import AdapterError
from draftloop.models.pair import Pair
from draftloop.models.unfit_layers import find_unfit, learns_from_earlier_tokens
from draftloop.training.forward import make_forward
from scripts import model_checks, model_zoo

FILE = Path(__file__).resolve().parent.parent / "src" / "draftloop" / "models" / "matrix.json"
NOISE = 0.12  # of a draft
LIMIT, PROCESSES = 180, 2  # seconds of one examination, and how many at a time


@dataclass(frozen=True)
class Care:
    """How thoroughly.

    Attributes:
        lengths: of drafts; None is the adaptive one.
        seeds: of weights.
        tokens: of an output.
        breaks: whether a way back that is broken on purpose has to be noticed, and gradients are taken once more with
            activations computed again.
    """

    lengths: tuple[int | None, ...]
    seeds: int
    tokens: int
    breaks: bool = False


QUICK = Care((4, None), 1, 48)
FULL = Care((1, 2, 4, 8, None), 3, 128, breaks=True)
CARES = {"quick": QUICK, "full": FULL}


@dataclass(frozen=True)
class Row:
    """What was found of one model.

    Attributes:
        name: of mlx-lm's module, or of a variant.
        works: whether it decodes exactly.
        why_not: where it does not.
        caches: kinds of its cache's leaves.
        rewinds: how they take tokens back.
        batches: whether unequal prompts are generated together as alone; None where that was not asked.
        trains: `all`, or which layers carry no adapter, or why none can be trained.
        head: `short` where logits are computed at chosen positions alone.
        exports: what mlx-lm loads from the files of an export: `adapter`, `fused` or both.
        tried: with which care, by its name.
    """

    name: str
    works: bool
    why_not: str | None = None
    caches: tuple[str, ...] = ()
    rewinds: str | None = None
    batches: str | None = None
    trains: str | None = None
    head: str | None = None
    exports: str | None = None
    tried: str = "quick"


def examine(name: str, care: Care) -> Row:
    """Everything about one model."""
    try:
        model = model_zoo.build(name)
        if (wrong := model_checks.logits_that_say_nothing(model)) is not None:
            return Row(name, False, wrong)
        caches = tuple(sorted({type(leaf).__name__ for leaf in leaves_of(make_prompt_cache(model))}))
        way = find_way(model).way
    except model_zoo.CannotBuild as error:
        return Row(name, False, f"no tiny one can be built: {error}")
    except NoWayBack as error:
        return Row(name, False, f"no exact way back: {error}", caches)
    except Exception as error:  # noqa: BLE001 - whatever a model of another's making raises is a reason
        return Row(name, False, f"it cannot be run: {type(error).__name__}: {' '.join(str(error).split())}")
    for seed in range(care.seeds):
        wrong = _said(lambda seed=seed: _decodes(name, seed, care))  # type: ignore[misc]
        if wrong is not None:
            return Row(name, False, wrong, caches, way)
    pair = _pair(name, 0)
    if care.breaks and (wrong := _said(lambda: model_checks.broken_rewinding(pair.target))) is not None:
        return Row(name, False, wrong, caches, way)
    if (wrong := _said(lambda: model_checks.batched_output(pair, 24))) is not None:
        return Row(name, False, wrong, caches, way)
    return Row(
        name,
        True,
        None,
        caches,
        way,
        "together" if batches_exactly(pair.target) else "one by one",
        _trains(pair.draft, recompute=care.breaks),
        _head(pair.draft),
        _exports(name),
    )


def _pair(name: str, seed: int) -> Pair:
    target, draft = model_zoo.build(name, seed), model_zoo.noisy(name, seed, NOISE)
    identity = PairId("target", "draft", "tokenizer")
    return Pair(target, draft, None, identity, model_zoo.VOCABULARY, frozenset(), None)


def _decodes(name: str, seed: int, care: Care) -> str | None:
    pair = _pair(name, seed)
    wrong = model_checks.greedy_output(pair, care.tokens, care.lengths)
    return wrong or model_checks.logged_probabilities(pair, care.tokens)


def _trains(model: nn.Module, *, recompute: bool) -> str:
    try:
        unfit = sorted(find_unfit(model))
    except AdapterError as error:
        return str(error)
    layers = f"all but {', '.join(unfit)}" if unfit else "all layers"
    if not learns_from_earlier_tokens(model):
        return f"{layers}, without a gradient from earlier tokens"
    for again in (False, True) if recompute else (False,):
        wrong = _said(lambda again=again: model_checks.gradient(model, again))  # type: ignore[misc]
        if wrong is not None:
            return f"{wrong}, when activations are computed again" if again else wrong
    return layers


def _exports(name: str) -> str:
    adapter = _said(lambda: model_checks.exported_adapter(name))
    fused = _said(lambda: model_checks.exported_draft(name))
    works = [kind for kind, wrong in (("adapter", adapter), ("fused", fused)) if wrong is None]
    return ", ".join(works) or f"{adapter}; {fused}"


def _head(model: nn.Module) -> str:
    lines: list[str] = []
    make_forward(model, "model", lines.append)
    return "every position" if lines else "short"


def _said(check: Callable[[], str | None]) -> str | None:
    """What a check found, or that it could not be made."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - as above
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def examined(name: str, tried: str) -> Row:
    """Everything about one model, found in a process of its own: some of them crash, and one never ends."""
    care = CARES[tried]
    command = [sys.executable, "-m", "scripts.models_matrix", "--one", name, *(["--full"] if care is FULL else [])]
    limit = LIMIT * care.seeds * len(care.lengths)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return Row(name, False, f"it does not end within {limit} s", tried=tried)
    if done.returncode < 0:
        return Row(name, False, f"its process crashes (signal {-done.returncode})", tried=tried)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        return Row(name, False, f"its process ends with {done.returncode}: {last}", tried=tried)
    return replace(Row(**json.loads(done.stdout.strip().splitlines()[-1])), tried=tried)


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="of modules, whose rows are written anew; by default all")
    parser.add_argument("--full", action="store_true", help="every draft length, three seeds, 128 tokens")
    parser.add_argument("--one", help="print what is found of one, as JSON, in this process")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(asdict(examine(given.one, FULL if given.full else QUICK))))
        return
    rows = []
    with ThreadPoolExecutor(PROCESSES) as pool:
        tried = "full" if given.full else "quick"
        for row in pool.map(lambda name: examined(name, tried), given.names or model_zoo.names()):
            rows.append(row)
            write(row)
            parts = (row.rewinds, row.batches, row.trains, row.head, row.exports)
            said = ", ".join(map(str, parts)) if row.works else f"NO: {row.why_not}"
            print(f"{row.name}: {said}", file=sys.stderr, flush=True)
    print(f"{sum(row.works for row in rows)} of {len(rows)} work", file=sys.stderr)


def write(row: Row) -> None:
    """Put a row in its place at once, for all of them take hours; rows of other versions, or of no model, go."""
    versions = {name: version(name) for name in ("mlx", "mlx-lm")}
    before = json.loads(FILE.read_text())
    names = set(model_zoo.names())
    kept = {one["name"]: one for one in before["models"] if before["versions"] == versions and one["name"] in names}
    models = kept | {row.name: asdict(row)}
    cares = {name: asdict(care) for name, care in CARES.items()}
    found = {"versions": versions, "cares": cares, "models": [models[name] for name in sorted(models)]}
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
