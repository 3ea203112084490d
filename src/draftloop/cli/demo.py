"""`demo`: runs the whole loop on the embedded pair."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import Interrupted
from .app import note, print_json
from .options import json_option

if TYPE_CHECKING:
    from ..demo import LoopResult

_MACHINES = "These figures differ a little from machine to machine, because processors and libraries round differently."


@click.command()
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of everything random.")
@click.option(
    "--keep",
    type=click.Path(readable=False, path_type=Path, file_okay=False),
    help="Keep the data in this new directory.",
)
@json_option
def demo_command(seed: int, keep: Path | None, as_json: bool) -> None:
    """Run the whole loop on the embedded pair.

    Collects, trains and measures in a few minutes, in a temporary data directory; your own data is not touched.
    """
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise click.BadParameter(f"{keep} is not empty", param_hint="--keep")
    from dataclasses import replace

    from ..demo import DEMO, loop_config, run_loop, short_training
    from ..runtime import blas
    from .progress import Steps

    if blas.is_needed() and not blas.loaded():
        note(f"slower than it could be: {blas.remedy()}")
    settings = replace(DEMO, seed=seed)
    with tempfile.TemporaryDirectory(prefix="draftloop-demo-") as temporary, Steps() as steps:
        try:
            config = loop_config(settings, short_training(seed))
            _, loop = run_loop(settings, config, keep or Path(temporary), steps.at)
        except Interrupted:
            if keep is None:  # the run that could be resumed is deleted with the temporary directory
                raise Interrupted("nothing of the demo is kept; run it again from the start") from None
            raise
    if as_json:
        print_json({"status": "ok", **loop.to_json()})
    else:
        _print(loop, keep)


def _print(loop: LoopResult, keep: Path | None) -> None:
    """One screen of 80 columns."""
    from .. import reference
    from .tables import interval, print_table, print_text, sampler_in_words

    weak, own = reference.WEAK_DOMAIN, reference.OWN_DOMAIN
    rows = []
    for domain in (weak, own):
        before, after, change = loop.row(domain, False), loop.row(domain, True), loop.change(domain)
        for name, attribute, low, high in (
            ("acceptance per position", "acceptance_per_position", change.position_ci_low, change.position_ci_high),
            ("acceptance length", "acceptance_length", change.ci_low, change.ci_high),
        ):
            a, b = getattr(before, attribute), getattr(after, attribute)
            rows.append([f"{domain}: {name}", a, b, f"{b - a:+.3f}", interval(low, high, signed=True)])
    before, after, change = loop.row(weak, False), loop.row(weak, True), loop.change(weak)
    sampler = sampler_in_words(loop.reports[weak].conditions["samplers"][0])
    prompts = ", ".join(f"{report.conditions['prompt_groups']} of {name}" for name, report in loop.reports.items())
    title = f"embedded pair, rule {after.rule}, K = {after.num_draft_tokens}, {sampler}; held-out prompts: {prompts}"
    print_table(["", "before", "after", "change", "95% interval"], rows, title=title)
    verdict = "more" if change.ci_low is not None and change.ci_low > 0 else "not provably more"
    failures = sum(report.failures for report in loop.collected.values())
    print_text(
        f"After {failures} failures and {loop.trained.seconds:.0f} seconds of training the target accepts {verdict} of "
        f"the draft's tokens: the acceptance length is {after.acceptance_length:.2f} instead of "
        f"{before.acceptance_length:.2f}, on prompts that neither has seen.\n\n"
        f"Acceptance length is how many tokens one pass of the target yields: 1 without speculation, at most "
        f"{after.num_draft_tokens + 1}. The draft was never trained on {weak}; {own} is its own domain, and shows "
        f"whether it forgot anything.\n\n{_MACHINES}"
    )
    if keep is not None:
        print_text(f"All of it is in {keep}; see `draftloop --data-dir {keep} status`.")
