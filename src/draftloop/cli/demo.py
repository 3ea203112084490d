"""`demo`: the loop on the pair that comes with the code."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import Interrupted
from .app import json_option, note, print_json

if TYPE_CHECKING:
    from ..demo import LoopResult

_MACHINES = "These figures differ a little from machine to machine, because processors and libraries round differently."


@click.command()
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of everything random.")
@click.option(
    "--keep",
    type=click.Path(readable=False, path_type=Path, file_okay=False),
    help="Keep the data in this new directory.",
)
@json_option
def demo_command(seed: int, keep: Path | None, as_json: bool) -> None:
    """Watch a draft get better: collect, train and measure on the embedded pair, in a few minutes.

    Everything happens in a temporary data directory; your own data is not touched.
    """
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise click.BadParameter(f"{keep} is not empty", param_hint="--keep")
    from dataclasses import replace

    from ..demo import DEMO, loop_config, run_loop, short_training
    from ..runtime import blas
    from .progress import Steps

    if blas.is_needed() and not blas.loaded():
        note(f"slower than it need be: {blas.remedy()}")
    settings = replace(DEMO, seed=seed)
    with tempfile.TemporaryDirectory(prefix="draftloop-demo-") as temporary, Steps() as steps:
        try:
            config = loop_config(settings, short_training(seed))
            _, loop = run_loop(settings, config, keep or Path(temporary), steps.at)
        except Interrupted:
            if keep is None:  # the run that could be resumed goes with the temporary directory
                raise Interrupted("nothing of the demo is kept; run it again from the start") from None
            raise
    if as_json:
        print_json({"status": "ok", **loop.to_json()})
    else:
        _print(loop, keep)


def _print(loop: LoopResult, keep: Path | None) -> None:
    """One screen of 80 columns."""
    from .. import reference
    from .tables import interval, print_table, print_text

    rows = []
    for domain in (reference.WEAK_DOMAIN, reference.OWN_DOMAIN):
        before, after, change = loop.row(domain, False), loop.row(domain, True), loop.change(domain)
        for name, a, b, low, high in (
            (
                "accepted per position",
                before.acceptance_per_position,
                after.acceptance_per_position,
                change.position_ci_low,
                change.position_ci_high,
            ),
            ("acceptance length", before.acceptance_length, after.acceptance_length, change.ci_low, change.ci_high),
        ):
            rows.append([f"{domain}: {name}", a, b, f"{b - a:+.3f}", interval(low, high, signed=True)])
    print_table(["", "before", "after", "change", "95% interval"], rows, title=_conditions(loop))
    print_text(_sentence(loop))
    for paragraph in (_explanation(loop), _MACHINES):
        print_text(f"\n{paragraph}")
    if keep is not None:
        print_text(f"All of it is in {keep}; look with `draftloop --data-dir {keep} status`.")


def _conditions(loop: LoopResult) -> str:
    from .. import reference
    from .tables import sampler_in_words

    row, conditions = loop.row(reference.WEAK_DOMAIN, True), loop.reports[reference.WEAK_DOMAIN].conditions
    prompts = ", ".join(f"{report.conditions['prompt_groups']} of {name}" for name, report in loop.reports.items())
    return (
        f"embedded pair, rule {row.rule}, K = {row.num_draft_tokens}, {sampler_in_words(conditions['samplers'][0])}; "
        f"held-out prompts: {prompts}"
    )


def _sentence(loop: LoopResult) -> str:
    from .. import reference

    before, after = (loop.row(reference.WEAK_DOMAIN, adapter) for adapter in (False, True))
    change = loop.change(reference.WEAK_DOMAIN)
    proven = change.ci_low is not None and change.ci_low > 0
    verdict = "more" if proven else "not provably more"
    failures = sum(report.failures for report in loop.collected.values())
    return (
        f"After {failures} failures and {loop.trained.seconds:.0f} seconds of training the target accepts {verdict} of "
        f"what the draft proposes: its acceptance length is {after.acceptance_length:.2f} instead of "
        f"{before.acceptance_length:.2f}, on prompts that neither has seen."
    )


def _explanation(loop: LoopResult) -> str:
    from .. import reference

    most = loop.row(reference.WEAK_DOMAIN, True).num_draft_tokens + 1
    return (
        f"Acceptance length is how many tokens one pass of the target yields: 1 without speculation, {most} at most. "
        f"The draft has never read {reference.WEAK_DOMAIN}; {reference.OWN_DOMAIN} is its own domain, and shows "
        "whether it forgot anything."
    )
