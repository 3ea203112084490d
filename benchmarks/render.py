"""Put the measured tables into the documents: python benchmarks/render.py [--check]

Between `<!-- table: NAME -->` and `<!-- end -->` stands what the results file NAME.json says, and nothing else.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from gate_tables import gate_sections, percent

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MATRIX = ROOT / "src" / "draftloop" / "models" / "matrix.json"  # `make models` writes it
MEASURES = {"acceptance_per_position": "acceptance per position", "acceptance_length": "acceptance length"}
SMALLEST = 1e-9  # a bound that stands for "more than nothing"
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rendered(text: str) -> str:
    """The document with every table made anew from its results file."""
    return _BLOCK.sub(lambda found: found[1] + table(found[2]) + found[3], text)


def table(name: str) -> str:
    """One results file in Markdown; where there is none yet, that."""
    path = MATRIX if name == "models" else ROOT / "benchmarks" / "results" / f"{name}.json"
    if not path.exists():
        return "Not measured yet.\n"
    return TABLES.get(name, figures_table)(json.loads(path.read_text()))


def demo_table(found: dict[str, Any]) -> str:
    """What `demo --json` printed, before and after, on both domains."""
    lines = ["| domain | | before | after |", "|---|---|---|---|"]
    domains = (("prose, new to the draft", found), ("code, the draft's own", found["other_domain"]))
    for domain, sides in domains:
        for key, what in MEASURES.items():
            before, after = (sides[side][key] for side in ("base", "adapter"))
            lines.append(f"| {domain} | {what} | {before:.3f} | {after:.3f} |")
    change = found["comparison"]
    gained = f"Acceptance length {change['delta_acceptance_length']:+.3f} on prose"
    interval = f"[{change['ci_low']:+.3f}, {change['ci_high']:+.3f}]"
    return "\n".join([*lines, "", f"{gained}, 95% interval {interval}; {found['seconds']:.0f} seconds.", ""])


def figures_table(found: dict[str, Any]) -> str:
    """The figures of a benchmark, and what they were measured on."""
    lines = ["| what | measured | should be | reached |", "|---|---|---|---|"]
    for row in found["figures"]:
        bound = _bound(row)
        reached = {True: "yes", False: "**no**", None: ""}[row.get("reached")]
        value = number(row["value"])
        if "interval" in row:
            low, high = row["interval"]
            value += f" [{low:.3f}, {high:.3f}]"
        lines.append(f"| {row['figure']} ({row['unit']}) | {value} | {bound} | {reached} |")
    machine, versions = found["machine"], found["versions"]
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, {machine['device']}"
    tools = f"MLX {versions['mlx']}, mlx-lm {versions['mlx-lm']}, Python {versions['python']}"
    return "\n".join([*lines, "", f"{where}; {tools}.", ""])


def _bound(row: dict[str, Any]) -> str:
    if "at_most" in row:
        return f"at most {row['at_most']:g}"
    if "at_least" not in row:
        return "reported"
    return "above 0" if 0 <= row["at_least"] <= SMALLEST else f"at least {row['at_least']:g}"


def gate_table(found: dict[str, Any]) -> str:
    """The figures, then how often the gate promotes without a better candidate and with one, and the looks."""
    parts = [figures_table(found)]
    for title, head, rows in gate_sections(found):
        lines = [f"{title}:", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        parts.append("\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows), ""]))
    return "\n".join(parts)


def drift_tables(found: dict[str, Any]) -> str:
    """The figures, then false alarms of unchanged sources, within the horizon and beyond it, and delays of falls."""
    tables = (unchanged_table(found), long_table(found["long"]), delay_table(found))
    return "\n".join([figures_table(found), *tables])


def unchanged_table(found: dict[str, Any]) -> str:
    """Shares of watches of an unchanged source that raise an alarm within the horizon; kinds not judged in italics."""
    lines = ["| unchanged source | chosen | watches | false alarms | of a plain bootstrap |", "|---|---|---|---|---|"]
    for row in found["false_alarms"]:
        kind = row["kind"] if row["judged"] else f"*{row['kind']}*"
        rates = f"{percent(row['ours'])} | {percent(row['plain_bootstrap'])}"
        lines.append(f"| {kind} | {100 * row['rate']:g}% | {row['watches']:,} | {rates} |")
    return "\n".join([*lines, ""])


def long_table(rows: list[dict[str, Any]]) -> str:
    """Shares over several horizons, against a sum that never begins anew."""
    lines = ["| unchanged source | chosen | horizons | false alarms | never begun anew |", "|---|---|---|---|---|"]
    for row in rows:
        rates = f"{percent(row['ours'])} | {percent(row['never_anew'])}"
        lines.append(f"| {row['kind']} | {100 * row['rate']:g}% | {row['horizons']} | {rates} |")
    return "\n".join([*lines, ""])


def delay_table(found: dict[str, Any]) -> str:
    """Generations until the alarm after a change at the start of the watch: median, 90% quantile, share detected."""
    head = "| change | chosen | reference | median | 90% | detected | median, plain bootstrap |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    late = f"over {found['conditions']['horizon']}"
    for row in found["delays"]:
        ours, plain = row["ours"], row["plain_bootstrap"]
        median, ninety, other = (value or late for value in (ours["median"], ours["ninety"], plain["median"]))
        cells = f"{median} | {ninety} | {100 * ours['detected']:.0f}% | {other}"
        lines.append(f"| {row['change']} | {100 * row['rate']:g}% | {row['reference']} | {cells} |")
    return "\n".join([*lines, ""])


def soak_table(found: dict[str, Any]) -> str:
    """Every round, then the figures."""
    domains = list(found["before"])
    head = ["round", "prompts", "drift alarm after", "outcome", "champion", *domains]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    before = " | ".join(f"{found['before'][domain]:.3f}" for domain in domains)
    lines.append(f"| before | | | | the bare draft | {before} |")
    for row in found["rounds"]:
        asked = ", ".join(f"{count} {domain}" for domain, count in row["prompts"].items() if count)
        alarm = "none" if row["drift_alarm_after_prompts"] is None else f"{row['drift_alarm_after_prompts']} prompts"
        after = " | ".join(f"{row['acceptance_per_position'][domain]:.3f}" for domain in domains)
        lines.append(
            f"| {row['round']} | {asked} | {alarm} | {row['outcome']} | {row['champion'] or 'none'} | {after} |"
        )
    return "\n".join([*lines, "", figures_table(found)])


def learning_table(found: dict[str, Any]) -> str:
    """The figures, then a table for each temperature and, where there are several, one by the number of failures."""
    rows = found["rows"]
    sizes = {size: [row for row in rows if row["failures"] == size] for size in sorted({r["failures"] for r in rows})}
    at = max(sizes, key=lambda size: len(sizes[size]))
    parts = [figures_table(found)]
    for temperature in dict.fromkeys(row["temperature"] for row in rows):
        some = [row for row in sizes[at] if row["temperature"] == temperature]
        base = found["base"][f"{temperature:g}"]
        before = ", ".join(f"{domain} {accepted:.3f}" for domain, accepted in base.items())
        parts.append(f"Temperature {temperature:g}, {at} failures; before: {before}.\n")
        more = {one["recipe"]: one for one in found["differences"] if one["temperature"] == temperature}
        parts.append(recipes_table(some, more))
    if len(sizes) > 1:
        what = "gain on the weak domain (the other domain; seconds)"
        parts.append(f"By the number of failures, temperature 0.8: {what}.\n")
        parts.append(sizes_table(sizes, at))
    return "\n".join(parts)


def recipes_table(rows: list[dict[str, Any]], more: dict[str, dict[str, Any]]) -> str:
    """One row a recipe: the chosen rate, what was gained, how much more ours gains, what it took."""
    head = ["recipe", "rate", "steps", "gain", "its seeds", "ours gains more by", "the other domain", "seconds"]
    lines = [f"| {' | '.join(head)} | peak MiB |", "|---" * (1 + len(head)) + "|"]
    for row in sorted(rows, key=lambda row: -float(row["gain"])):
        seeds = f"{row['gain_low']:+.3f} to {row['gain_high']:+.3f}"
        against = more.get(row["recipe"])
        ours = f"{against['ours_more_by']:+.3f} ({against['low']:+.3f} to {against['high']:+.3f})" if against else ""
        gained = f"{row['gain']:+.3f} | {seeds} | {ours} | {row['other_domain']:+.3f}"
        took = f"{row['seconds']:.0f} | {row['peak_mb']:,.0f}"
        lines.append(f"| {row['recipe']} | {row['learning_rate']:g} | {row['steps']:,} | {gained} | {took} |")
    return "\n".join([*lines, ""])


def sizes_table(sizes: dict[int, list[dict[str, Any]]], at: int) -> str:
    """One row a recipe, one column a number of failures; recipes measured at one of them alone are left out."""
    others = [size for size in sizes if size != at]
    recipes = dict.fromkeys(row["recipe"] for size in others for row in sizes[size])
    lines = [f"| recipe | {' | '.join(f'{size:,}' for size in sizes)} |", "|---" * (1 + len(sizes)) + "|"]
    for recipe in recipes:
        cells = []
        for some in sizes.values():
            row = next(r for r in some if r["recipe"] == recipe and r["temperature"] == 0.8)
            cells.append(f"{row['gain']:+.3f} ({row['other_domain']:+.3f}; {row['seconds']:.0f})")
        lines.append(f"| {recipe} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def faults_table(found: dict[str, Any]) -> str:
    """Every fault, how often it was made, and how it ended."""
    lines = ["| fault | count | what must hold | result |", "|---|---|---|---|"]
    for row in found["rows"]:
        counts = ", ".join(f"{number:,} {what}" for what, number in row["counts"].items()) or f"{row['tests']} tests"
        lines.append(f"| {row['row']} | {counts} | {row['holds']} | {row['result']} |")
    more = [f"- *{row['row']}*: {'; '.join(said)}." for row in found["rows"] if (said := _details(row))]
    return "\n".join([*lines, "", *more, ""])


def _details(row: dict[str, Any]) -> list[str]:
    """What was struck, how long it took, and what else is to be said of a fault."""
    struck = ", ".join(f"{name} {number:,}" for name, number in row["struck"].items())
    times = [
        f"{what}: median {took['median']:.2g} s, at most {took['max']:.2g} s" for what, took in row["seconds"].items()
    ]
    return [*([f"struck: {struck}"] if struck else []), *times, *row["notes"]]


def decoding_table(found: dict[str, Any]) -> str:
    """The figures, how the adaptive draft length keeps up with the best fixed K, then every way on both domains."""
    kept = [
        "| temperature | domain | best rule | best K | adaptive K over it | adaptive K over K = 0 |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["keeping"]:
        best = f"{row['temperature']:g} | {row['domain']} | {row['best_rule']} | {row['best_K']}"
        over = f"{row['adaptive_over_best']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        kept.append(f"| {best} | {over} | {row['adaptive_over_zero']:.2f} |")
    lines = [
        "| temperature | domain | | rule | K | tokens/s | acceptance length | over K = 0 | forecast | over mlx-lm |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        speed = f"{row['tokens_per_second']:.0f} ± {row['spread']:.0%}"
        numbers = ("acceptance_length", "over_zero", "forecast", "over_stock")
        ratios = " | ".join("" if row[name] is None else f"{row[name]:.2f}" for name in numbers)
        way = f"{row['temperature']:g} | {row['domain']} | {row['by']} | {row['rule']} | {row['K']}"
        lines.append(f"| {way} | {speed} | {ratios} |")
    return "\n".join([figures_table(found), *kept, "", *lines, ""])


def draws_table(found: dict[str, Any]) -> str:
    """The figures, then each rule and draft length."""
    lines = ["| what | rule | K | exact draws over those before |", "|---|---|---|---|"]
    for row in found["rows"]:
        lines.append(f"| {row['what']} | {row['rule']} | {row['K']} | {row['exact_over_before']:.3f} |")
    return "\n".join([figures_table(found), *lines, ""])


def caches_table(found: dict[str, Any]) -> str:
    """The figures, then each model."""
    lines = ["| what | model | way | ms of the other | over the other |", "|---|---|---|---|---|"]
    for row in found["rows"]:
        lines.append(f"| {row['what']} | {row['model']} | {row['way']} | {row['ms']:.2f} | {row['ratio']:.3f} |")
    return "\n".join([figures_table(found), *lines, ""])


def models_table(found: dict[str, Any]) -> str:
    """Every text model of mlx-lm: those that work, then those that do not, with the reason."""
    works = [row for row in found["models"] if row["works"]]
    keys = ("rewinds", "batches", "trains", "head", "exports", "tried")
    lines = [f"| model | cache | {' | '.join(keys)} |", "|---" * (len(keys) + 2) + "|"]
    for row in works:
        cache = ", ".join(kind.removesuffix("Cache") for kind in row["caches"])
        found_of = (row[key] for key in keys)
        lines.append(f"| {' | '.join((row['name'], cache, *found_of))} |")
    others = [f"| {row['name']} | {row['why_not']} |" for row in found["models"] if not row["works"]]
    total, versions = len(found["models"]), found["versions"]
    said = f"{len(works)} of {total} work; mlx-lm {versions['mlx-lm']}, MLX {versions['mlx']}."
    return "\n".join([*lines, "", said, "", "| does not work | why |", "|---|---|", *others, ""])


def ways_table(found: dict[str, Any]) -> str:
    """The figures, then how fast each way is."""
    lines = ["| domain | | a second | ± |", "|---|---|---|---|"]
    for row in found["rows"]:
        speed = f"{row['speed']:,.1f} {row['unit']}"
        lines.append(f"| {row['domain']} | {row['way']} | {speed} | {row['spread']:.0%} |")
    return "\n".join([figures_table(found), *lines, ""])


def log_table(found: dict[str, Any]) -> str:
    """The figures, then what each pass over the log takes."""
    lines = ["| pass over the log | seconds | peak memory, MB |", "|---|---|---|"]
    lines += [f"| {row['what']} | {row['seconds']:.1f} | {row['peak_mb']:.0f} |" for row in found["operations"]]
    return "\n".join([figures_table(found), *lines, ""])


def real_table(found: dict[str, Any]) -> str:
    """The figures, then what was learned from how many failures."""
    return "\n".join([figures_table(found), *_rows(found["learned"]), ""])


def real_ways_table(found: dict[str, Any]) -> str:
    """The figures, how fast each way is, and what a step is made of where that was measured."""
    lines = ["| | tokens/s | ± |", "|---|---|---|"]
    lines += [f"| {row['way']} | {row['speed']:,.1f} | {row['spread']:.0%} |" for row in found["rows"]]
    if "parts" in found:
        lines += ["", "| part of a step, timed alone | seconds |", "|---|---|"]
        lines += [f"| {row['part']} | {row['seconds']:.2f} |" for row in found["parts"]]
    return "\n".join([figures_table(found), *lines, ""])


def _rows(rows: list[dict[str, Any]]) -> list[str]:
    """A table of rows that have the same columns."""
    lines = [f"| {' | '.join(rows[0])} |", f"|{'---|' * len(rows[0])}"]
    return lines + [f"| {' | '.join(number(value) for value in row.values())} |" for row in rows]


TABLES = {
    "demo": demo_table,
    "drift": drift_tables,
    "faults": faults_table,
    "gate": gate_table,
    "learning": learning_table,
    "models": models_table,
    "learning_main": learning_table,
    "learning_smollm2": learning_table,
    "live_soak": soak_table,
    "real": real_table,
    "real_training_smollm2": real_ways_table,
    "real_collecting_smollm2": real_ways_table,
    "soak": soak_table,
    "speed_decoding": decoding_table,
    "speed_caches": caches_table,
    "speed_draws": draws_table,
    "speed_collecting": ways_table,
    "speed_training": ways_table,
    "speed_log": log_table,
}
"""Results files with a table of their own kind; the others are figures alone."""


def number(value: Any) -> str:
    """A whole number as it is, another with three digits behind the point."""
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def main() -> int:
    stale = []
    for path in DOCUMENTS:
        before = path.read_text()
        after = rendered(before)
        if after != before:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(after)
    print(f"{'stale' if '--check' in sys.argv else 'rendered'}: {', '.join(stale) or 'nothing'}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
