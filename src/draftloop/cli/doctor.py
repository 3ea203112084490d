"""`doctor`: checks the set-up of this machine; each finding comes with its remedy."""

from __future__ import annotations

from dataclasses import asdict

import click

from ..whereabouts import places
from .app import App, print_json
from .options import json_option, model_options

_MARKS = {"ok": "ok     ", "warning": "warning", "problem": "PROBLEM"}


@click.command()
@click.option("--pair/--no-pair", "with_pair", default=True, help="Load both models too.  [default: --pair]")
@model_options
@json_option
@click.pass_obj
def doctor_command(app: App, with_pair: bool, as_json: bool) -> int:
    """Check your setup.

    Checks the configuration, platform, MLX device, BLAS, memory, write access and the pair. Each problem comes with its
    remedy. Exits with 1 if there is a problem.
    """
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
