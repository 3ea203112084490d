"""`doctor`: what this machine has, each line with its remedy."""

from __future__ import annotations

from dataclasses import asdict

import click

from ..whereabouts import places
from .app import App, json_option, model_options, print_json

_MARKS = {"ok": "ok     ", "warning": "warning", "problem": "PROBLEM"}


@click.command()
@click.option("--pair/--no-pair", "with_pair", default=True, help="Also load both models.  [default: --pair]")
@model_options
@json_option
@click.pass_obj
def doctor_command(app: App, with_pair: bool, as_json: bool) -> int:
    """Configuration, platform, MLX device, BLAS, memory, write access and the pair; each line with its remedy."""
    from ..doctor import check_setup
    from .tables import print_text

    findings = []
    for finding in check_setup(app.resolved, app.data_dir, with_pair=with_pair):
        findings.append(finding)
        if not as_json:
            remedy = f" -> {finding.remedy}" if finding.remedy else ""
            print_text(f"{_MARKS[finding.state]} {finding.name}: {finding.found}{remedy}")
    healthy = all(finding.state != "problem" for finding in findings)
    if as_json:
        status, where = "ok" if healthy else "problem", places(app.resolved, app.data_dir)
        print_json({"status": status, **where, "findings": [asdict(finding) for finding in findings]})
    return 0 if healthy else 1
