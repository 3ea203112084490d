"""The embedded pair: a small real target, a smaller real draft, and prompts of two domains.

In: nothing. Out: paths of what lies beside this file. Knows no code of the project; scripts/reference_pair made it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Domain = Literal["prose", "code"]

ROOT = Path(__file__).resolve().parent
TARGET = ROOT / "target"
DRAFT = ROOT / "draft"
PROMPTS = ROOT / "prompts"

WEAK_DOMAIN: Domain = "prose"  # the target read it, the draft never did
OWN_DOMAIN: Domain = "code"  # both read it
DOMAINS: tuple[Domain, ...] = (WEAK_DOMAIN, OWN_DOMAIN)


def prompts_file(domain: str, part: str) -> Path:
    """The .jsonl prompt set of one domain (`prose`, `code`) and part (`collect`, `benchmark`)."""
    return PROMPTS / f"{domain}.{part}.jsonl"
