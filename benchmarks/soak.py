"""Leave it running: unattended `retrain` rounds over prompts whose domain shifts half-way: python benchmarks/soak.py

Three rounds. Everything goes through the command line, as cron would do it. One source, so nothing but the text tells
that the domain changed: code, the draft's own, and from the middle of the second round on prose, which it has never
read. Every version that was in use is scored on the benchmark prompts of both domains, on the same texts.
"""

from __future__ import annotations

import prepared  # noqa: F401

# isort: split
import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plots
import results
from results import Figure

from draftloop import reference
from draftloop.cli.tables import print_table
from draftloop.config import Config, Speculative
from draftloop.decoding.generate import decoding_settings
from draftloop.decoding.teacher_forced import TargetGeneration
from draftloop.evaluation.live_decoding import samples_from_prompts
from draftloop.evaluation.scoring import score
from draftloop.models.pair import Pair, load_pair
from draftloop.prompts.files import read_prompts

FIRST: str = reference.OWN_DOMAIN
SECOND: str = reference.WEAK_DOMAIN
SOURCE = "stream"
ROUNDS = 3
MOST_FORGOTTEN = 0.02


@dataclass(frozen=True)
class Size:
    """How much of everything: prompts of a round and of each benchmark, tokens of a text, prompts between looks."""

    prompts: int
    benchmark: int
    tokens: int
    look_every: int


FULL = Size(prompts=120, benchmark=75, tokens=64, look_every=10)
QUICK = Size(prompts=60, benchmark=10, tokens=24, look_every=30)


class Home:
    """A data directory that is used through the command line alone."""

    def __init__(self, folder: Path, size: Size) -> None:
        self.data = folder / "data"
        self._folder = folder
        self._config = folder / "config.yaml"
        self._config.write_text(f"speculative: {{max_tokens: {size.tokens}}}\nretrain: {{min_interval_minutes: 0}}\n")

    def run(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
        """What a command prints with --json; any other exit code than expected ends the benchmark."""
        command = [sys.executable, "-m", "draftloop", "-c", str(self._config), "--data-dir", str(self.data)]
        done = subprocess.run([*command, *arguments, "--json"], capture_output=True, text=True, check=False)
        if done.returncode not in codes:
            raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def collect(self, prompts: list[str]) -> None:
        """Generate from prompts with the champion."""
        path = self._folder / "prompts.jsonl"
        path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        self.run("collect-data", "--prompts-file", str(path), "--source", SOURCE)

    def retrain(self) -> dict[str, Any]:
        """What a run of `retrain` did."""
        return self.run("retrain", codes=(0, 10, 11, 12))


def stream(size: Size) -> list[tuple[str, str]]:
    """(domain, prompt) in the order in which they are asked."""
    half = ROUNDS * size.prompts // 2
    prompts = {domain: read_prompts(reference.prompts_file(domain, "collect")) for domain in (FIRST, SECOND)}
    return [(domain, prompt.text) for domain in (FIRST, SECOND) for prompt in prompts[domain][:half]]


def one_round(home: Home, number: int, asked: list[tuple[str, str]], size: Size) -> dict[str, Any]:
    """Collect in pieces with a look at `status` after each, then `retrain`."""
    alarm_after = None
    for start in range(0, len(asked), size.look_every):
        home.collect([prompt for _, prompt in asked[start : start + size.look_every]])
        if alarm_after is None and any(watch["alarm"] for watch in home.run("status")["drift"]):
            alarm_after = start + min(size.look_every, len(asked) - start)
    before = home.run("status")
    made = home.retrain()
    numbers = made["numbers"]
    return {
        "round": number,
        "prompts": {domain: sum(d == domain for d, _ in asked) for domain in (FIRST, SECOND)},
        "unused_failures": before["failures_new"],
        "drift_alarm_after_prompts": alarm_after,
        "shift_after_prompts": next((i for i, (d, _) in enumerate(asked) if d == SECOND), None),
        "outcome": made["outcome"],
        "why": made["why"],
        "version": made["version"],
        "champion": made["champion"],
        "p_value": numbers.get("p_value"),
        "alpha": numbers.get("alpha"),
        "heldout_prompts": numbers.get("prompts"),
        "seconds": made["seconds"],
    }


def texts_of(pair: Pair, domain: str, size: Size) -> list[TargetGeneration]:
    """What the target makes of the domain's benchmark prompts."""
    settings = decoding_settings(Speculative(max_tokens=size.tokens))
    prompts = read_prompts(reference.prompts_file(domain, "benchmark"))[: size.benchmark]
    samples, _ = samples_from_prompts(pair, prompts, settings, chat_template=True, max_prompt_length=1 << 20)
    return [sample.generation for sample in samples]


def acceptance(pair: Pair, texts: list[TargetGeneration], versions: dict[str, Path | None]) -> dict[str, float]:
    """Acceptance per position of each version on the same texts."""
    scores = score(pair, texts, "rejection", versions)
    tokens = sum(len(text.output) for text in texts)
    return {name: sum(float(one.position.sum()) for one in column) / tokens for name, column in scores.items()}


def main() -> None:
    size = wanted_size(__doc__)
    with tempfile.TemporaryDirectory(prefix="draftloop-soak-") as folder:
        home = Home(Path(folder), size)
        series = report("soak", home, all_rounds(home, size), size)
    if size is FULL:
        draw(series)


def wanted_size(description: str) -> Size:
    """By the flag that every benchmark has."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small run to try the script; writes no results")
    return QUICK if parser.parse_args().quick else FULL


def all_rounds(home: Home, size: Size) -> list[dict[str, Any]]:
    """Every round, which is printed as soon as it is over."""
    asked, rounds = stream(size), []
    for number in range(1, ROUNDS + 1):
        rounds.append(one_round(home, number, asked[(number - 1) * size.prompts : number * size.prompts], size))
        print(json.dumps(rounds[-1]), file=sys.stderr)
    return rounds


def report(name: str, home: Home, rounds: list[dict[str, Any]], size: Size) -> dict[str, list[float]]:
    """Measure every draft that was in use, show the figures, and write them if the size is the full one.

    Returns:
        By domain, the acceptance per position before the first round and after each.
    """
    pair = load_pair(Config().models)
    used = [None, *(row["champion"] for row in rounds)]
    versions = {version or "none": home.data / "adapters" / version if version else None for version in used}
    measured = {domain: acceptance(pair, texts_of(pair, domain, size), versions) for domain in (FIRST, SECOND)}
    series = {domain: [found[version or "none"] for version in used] for domain, found in measured.items()}
    for row, first, second in zip(rounds, series[FIRST][1:], series[SECOND][1:], strict=True):
        row["acceptance_per_position"] = {FIRST: first, SECOND: second}
    start = {FIRST: series[FIRST][0], SECOND: series[SECOND][0]}
    figures = find_figures(series, rounds)
    show(rounds, start, figures)
    if size is FULL:
        conditions = {
            "pair": {"target": pair.identity.target, "draft": pair.identity.draft},
            "rule": "rejection",
            "temperature": 0.8,
            "prompts_a_round": size.prompts,
            "benchmark_prompts": size.benchmark,
            "max_tokens": size.tokens,
            "source": "one for both domains",
        }
        results.write(name, conditions, figures, before=start, rounds=rounds)
    return series


def find_figures(series: dict[str, list[float]], rounds: list[dict[str, Any]]) -> list[Figure]:
    """What must hold, and what leaving it running is for."""
    best, forgotten = series[FIRST][0], 0.0
    for value in series[FIRST]:
        best = max(best, value)
        forgotten = max(forgotten, best - value)
    gained = series[SECOND][-1] - series[SECOND][0]
    alarms = sum(row["drift_alarm_after_prompts"] is not None for row in rounds[1:])
    return [
        Figure(f"{FIRST}, most below its best", forgotten, "acceptance per position", at_most=MOST_FORGOTTEN),
        Figure(f"{SECOND}, gained", gained, "acceptance per position", at_least=1e-9),
        Figure("drift alarms before the shift", _early(rounds), "alarms", at_most=0),
        Figure("rounds with a drift alarm after it", alarms, "rounds", at_least=1),
    ]


def _early(rounds: list[dict[str, Any]]) -> int:
    """Alarms raised while nothing had changed."""
    early = 0
    for row in rounds:
        alarm, shift = row["drift_alarm_after_prompts"], row["shift_after_prompts"]
        early += alarm is not None and row["prompts"][SECOND] == 0
        early += alarm is not None and bool(shift) and alarm <= shift
    return early


def show(rounds: list[dict[str, Any]], start: dict[str, float], figures: list[Figure]) -> None:
    """The table on the terminal."""
    rows: list[list[object]] = [["before", None, None, None, None, start[FIRST], start[SECOND]]]
    for row in rounds:
        asked = ", ".join(f"{n} {domain}" for domain, n in row["prompts"].items() if n)
        after = row["acceptance_per_position"]
        alarm = row["drift_alarm_after_prompts"]
        rows.append(
            [row["round"], asked, alarm, row["outcome"], row["champion"] or "none", after[FIRST], after[SECOND]]
        )
    print_table(["round", "prompts", "alarm after", "outcome", "champion", FIRST, SECOND], rows)
    print_table(
        ["figure", "measured", "unit", "reached"],
        [[f.figure, f.value, f.unit, "yes" if f.reached else "NO"] for f in figures],
    )


def draw(series: dict[str, list[float]]) -> None:
    """Acceptance of both domains after each round."""
    figure, (axes,) = plots.panels()
    for (domain, values), colour in zip(series.items(), plots.COLOURS, strict=False):
        axes.plot(range(len(values)), values, marker="o", color=colour, label=domain)
    axes.axvline(1.5, color=plots.GREY, linestyle=":", label="the stream shifts")
    axes.set_xticks(range(ROUNDS + 1), ["before", *(f"round {i}" for i in range(1, ROUNDS + 1))])
    axes.set_ylabel("acceptance per position")
    axes.set_ylim(0, None)
    axes.legend()
    plots.save(figure, "soak")


if __name__ == "__main__":
    main()
