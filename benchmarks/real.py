"""The loop on a model that people use: python benchmarks/real.py smollm2 [--draft self]

Every step is a command of draftloop in a process of its own, as a user would call it, and what it printed is kept in a
folder outside of the repository with its time and the most memory that the process had: a run that was cut off goes on.
The prompts to measure on have other requests and other things in them than those to learn from (`real_prompts`).
"""

from __future__ import annotations

import prepared  # noqa: F401

# isort: split
import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import results
from real_prompts import varied_instructions
from results import Figure

from draftloop.cli.tables import print_table
from draftloop.config import Config
from draftloop.data_directory import DataDirectory
from draftloop.models import adapter as lora
from draftloop.models.pair import load_pair
from draftloop.store.atomic import write_atomically

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what makes the models is no part of the package
from scripts.real_models import SOURCES, places, real_model

MAIN = "smollm2"  # its results are `real.json`
SIZES = (50, 150, 500)  # failures
PROMPTS, MEASURED, DECODED = 960, 60, 8
LENGTHS = "1,2,3,4,6"
MEGABYTE = 1 << 20
NULL = 1e-4  # of an adapter's B where nothing was learned
SETTINGS: dict[str, dict[str, Any]] = {
    "speculative": {"temperature": 0.7, "top_p": 0.95, "max_tokens": 48},
    "data": {"teacher_top_k": 64},
}


@dataclass(frozen=True)
class Step:
    """What a command printed, and what it took.

    Attributes:
        found: its JSON.
        seconds: from its start to its end.
        peak_mb: of the process, in the system's own count.
    """

    found: dict[str, Any]
    seconds: float
    peak_mb: float


class Folder:
    """A benchmark of one pair, that goes on where it was cut off.

    Args:
        path: is made.
        target, draft: as `models` has them.
    """

    def __init__(self, path: Path, target: Path, draft: str) -> None:
        self._path, self._draft = path, draft
        path.mkdir(parents=True, exist_ok=True)
        config = {"models": {"target": str(target), "draft": draft}, **SETTINGS}
        (path / "config.yaml").write_text(json.dumps(config))

    def data(self, name: str) -> Path:
        """A data directory."""
        return self._path / f"data-{name}"

    def prompts(self, part: str, texts: Sequence[str]) -> Path:
        """A file of prompts."""
        path = self._path / f"{part}.jsonl"
        path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
        return path

    def step(self, name: str, data: str, *command: str, codes: Sequence[int] = (0,)) -> Step:
        """Call draftloop, unless that was done; SystemExit where it fails, and the next run begins with it again."""
        path = self._path / f"{name}.json"
        if not path.is_file():
            began = time.monotonic()
            print(f"{name}: draftloop {' '.join(command)}", file=sys.stderr, flush=True)
            call = [sys.executable, "-m", "draftloop", "--config", str(self._path / "config.yaml")]
            with subprocess.Popen(
                [*call, "--data-dir", str(self.data(data)), *command, "--json"], stdout=subprocess.PIPE, text=True
            ) as process:
                assert process.stdout is not None
                printed = process.stdout.read()
                _, status, used = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode not in codes:
                raise SystemExit(f"{name} ended with {process.returncode}: {printed[-500:]}")
            peak = used.ru_maxrss / (MEGABYTE if sys.platform == "darwin" else 1024)
            done = Step(json.loads(printed), time.monotonic() - began, peak)
            write_atomically(path, json.dumps(asdict(done)).encode())
        return Step(**json.loads(path.read_text()))

    def first_failures(self, whole: str, count: int) -> str:
        """A data directory with the beginning of another one's log, to so many failures of the split `train`."""
        name = f"{count}"
        source, to = self.data(whole) / "failures", self.data(name) / "failures"
        if not self.data(name).exists():
            to.mkdir(parents=True)
            with (source / "failures.jsonl").open() as log, (to / "failures.jsonl").open("w") as beginning:
                for line in log:
                    if count < 0:
                        break
                    record = json.loads(line)
                    is_failure = record.get("split") == "train" and bool(record.get("disagreements"))
                    count -= is_failure
                    if count >= 0:
                        beginning.write(line)
            shutil.copyfile(source / "teacher.bin", to / "teacher.bin")
            for kept in self.data(whole).glob("self_draft.json"):
                shutil.copyfile(kept, self.data(name) / kept.name)
        return name

    def add_null(self, trained: str) -> None:
        """A data directory like another one, whose only version has learned nothing: noise next to nothing."""
        if self.data("null").exists():
            return
        shutil.copytree(self.data(trained), self.data("null"), ignore=shutil.ignore_patterns("adapters", "runs"))
        data = DataDirectory(self.data("null"))
        config = Config.model_validate_json((self._path / "config.yaml").read_text())
        pair = load_pair(config.models, names=data.names)
        lora.attach_fresh(pair.draft, lora.shape_for(pair.draft, config.training.lora), 0)
        random = mx.random.key(0)
        noise = {
            name: NULL * mx.random.normal(leaf.shape, key=random)
            for name, leaf in lora.adapter_parameters(pair.draft).items()
            if name.endswith("lora_b")
        }
        lora.load_parameters(pair.draft, noise)
        manifest = {"pair": pair.identity, "parent": None}
        data.registry.create(lambda path: lora.save_adapter(pair.draft, path), manifest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=sorted(SOURCES))
    parser.add_argument("--draft", default="self", help="as models.draft; default: self")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="numbers of failures to train on")
    parser.add_argument("--minutes", type=float, default=90.0, help="limit of a training")
    parser.add_argument("--folder", type=Path, help="where all of it is kept")
    given = parser.parse_args()
    target = real_model(given.model)
    name = "_".join(
        ["real", *([] if given.model == MAIN else [given.model]), *([] if given.draft == "self" else ["draft"])]
    )
    folder = Folder(given.folder or places() / "benchmark" / name, target, given.draft)
    sizes = [int(size) for size in given.sizes.split(",")]
    steps = carry_out(folder, sizes, given.minutes)
    rows = learning_rows(steps, sizes)
    figures = figures_of(steps, sizes)
    print_table(list(rows[0]), [list(row.values()) for row in rows], title="what is learned from how many failures")
    print_table(
        ["figure", "measured", "should be", "unit", "reached"],
        [[one.figure, one.value, one.at_least or one.at_most, one.unit, str(one.reached)] for one in figures],
    )
    conditions = {
        "target": given.model,
        "draft": given.draft,
        "settings": SETTINGS,
        "prompts": f"{PROMPTS} to learn from; {MEASURED} with other requests and things to measure on",
        "training": f"by default, at most {given.minutes:g} minutes",
    }
    results.write(name, conditions, figures, learned=rows, steps={name: asdict(step) for name, step in steps.items()})


def carry_out(folder: Folder, sizes: Sequence[int], minutes: float) -> dict[str, Step]:
    """All steps, by name."""
    learn = folder.prompts("collect", varied_instructions("collect", PROMPTS))
    measure = str(folder.prompts("benchmark", varied_instructions("benchmark", MEASURED)))
    found = {"collect": folder.step("collect", "all", "collect-data", "--prompts-file", str(learn))}
    most = max(sizes)
    for size in sorted(sizes, reverse=True):  # the largest settles how many layers a self-draft has
        data = folder.first_failures("all" if size == most else str(most), size)
        found[f"train {size}"] = folder.step(f"train-{size}", data, "train", "--max-minutes", f"{minutes:g}")
        found[f"measure {size}"] = folder.step(
            f"measure-{size}",
            data,
            *(
                "benchmark",
                "acceptance",
                "--adapter",
                "latest",
                "--prompts-file",
                measure,
                "--num-draft-tokens",
                LENGTHS,
            ),
        )
    found["speed"] = folder.step(
        "speed",
        str(most),
        *("benchmark", "speed", "--adapter", "latest", "--prompts-file", measure, "--limit", str(DECODED)),
        *("--num-draft-tokens", LENGTHS),
    )
    folder.add_null(str(most))
    found["gate of a null"] = folder.step("gate-null", "null", "retrain", codes=(0, 11, 12))
    found["gate"] = folder.step("gate", str(most), "retrain", codes=(0, 11, 12))
    return found


def learning_rows(steps: dict[str, Step], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Acceptance before and after so many failures, and what the training took."""
    rows = []
    for size in sorted(sizes):
        trained, measured = steps[f"train {size}"], steps[f"measure {size}"].found
        before, after = (
            next(
                row
                for row in measured["results"]
                if (row["adapter"] == "none") is bare and row["num_draft_tokens"] == 2
            )
            for bare in (True, False)
        )
        rows.append(
            {
                "failures": trained.found["failures"],
                "before": before["acceptance_per_position"],
                "after": after["acceptance_per_position"],
                "length at K = 2": after["acceptance_length"],
                "steps": trained.found["steps"],
                "minutes": trained.seconds / 60,
                "tokens/s": trained.found["tokens"] / trained.found["seconds"],
                "peak MB": trained.peak_mb,
            }
        )
    return rows


def figures_of(steps: dict[str, Step], sizes: Sequence[int]) -> list[Figure]:
    """The figures that have a bound, and the ones beside them."""
    last = learning_rows(steps, sizes)[-1]
    speed = steps["speed"].found
    best = max((row for row in speed["rows"] if row["forecast"] is not None), key=lambda row: row["forecast"])
    peak = max(step.peak_mb for step in steps.values())
    gate = steps["gate"].found
    return [
        Figure("accepted per position on other requests", last["after"], "share", at_least=0.45),
        Figure("training", last["minutes"], "minutes", at_most=90),
        Figure("highest forecast over the target alone", best["forecast"], "x"),
        Figure("measured at that K", best["speed_up"], "x"),
        Figure("most memory of any step", peak, "MB", at_most=3 * 1024),
        Figure(
            "a null promoted by the gate",
            float(steps["gate of a null"].found["outcome"] == "promoted"),
            "of 1",
            at_most=0,
        ),
        Figure("promoted by the gate", float(gate["outcome"] == "promoted"), "of 1", at_least=1),
    ]


if __name__ == "__main__":
    main()
