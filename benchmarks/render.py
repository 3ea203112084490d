"""Put the measured tables into the documents: python benchmarks/render.py [--check]

Between `<!-- table: NAME -->` and `<!-- end -->` stands what the results file NAME.json says, and nothing else.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MEASURES = {"acceptance_per_position": "accepted per position", "acceptance_length": "tokens a round"}
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rendered(text: str) -> str:
    """The document with every table made anew from its results file."""
    return _BLOCK.sub(lambda found: found[1] + table(found[2]) + found[3], text)


def table(name: str) -> str:
    """One results file in Markdown."""
    found = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    return demo_table(found) if name == "demo" else figures_table(found)


def demo_table(found: dict[str, Any]) -> str:
    """What `demo --json` printed, before and after, on both domains."""
    lines = ["| domain | | before | after |", "|---|---|---|---|"]
    domains = (("prose, new to the draft", found), ("code, the draft's own", found["other_domain"]))
    for domain, sides in domains:
        for key, what in MEASURES.items():
            before, after = (sides[side][key] for side in ("base", "adapter"))
            lines.append(f"| {domain} | {what} | {before:.3f} | {after:.3f} |")
    change = found["comparison"]
    gained = f"{change['delta_acceptance_length']:+.3f} tokens a round on prose"
    interval = f"[{change['ci_low']:+.3f}, {change['ci_high']:+.3f}]"
    return "\n".join([*lines, "", f"{gained}, 95% interval {interval}; {found['seconds']:.0f} seconds.", ""])


def figures_table(found: dict[str, Any]) -> str:
    """The figures of a benchmark, and what they were measured on."""
    lines = ["| what | measured | should be | reached |", "|---|---|---|---|"]
    for row in found["figures"]:
        bound = f"at least {row['at_least']:g}" if "at_least" in row else f"at most {row['at_most']:g}"
        reached = "yes" if row["reached"] else "**no**"
        lines.append(f"| {row['figure']} ({row['unit']}) | {number(row['value'])} | {bound} | {reached} |")
    machine, versions = found["machine"], found["versions"]
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, {machine['device']}"
    tools = f"MLX {versions['mlx']}, mlx-lm {versions['mlx-lm']}, Python {versions['python']}"
    return "\n".join([*lines, "", f"{where}; {tools}.", ""])


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
