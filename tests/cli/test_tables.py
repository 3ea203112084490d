"""Tables stay whole in 80 columns: heads are broken between words, and no cell is."""

from __future__ import annotations

import pytest

from draftloop.cli.tables import interval, print_table

HEADS = ["adapter", "rule", "K", "acceptance per position", "acceptance rate", "acceptance length", "95%"]
AT_80 = """\
                           acceptance
                                  per   acceptance   acceptance
 adapter        rule   K     position         rate       length              95%
 ───────────────────────────────────────────────────────────────────────────────
 none      rejection   1        0.465        0.479        1.469   [1.431, 1.509]
 v0001     rejection   8        0.575        0.175        2.343   [2.222, 2.479]

"""


def test_a_narrow_table_breaks_its_heads_between_words_and_no_cell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_table(
        HEADS,
        [
            ["none", "rejection", 1, 0.465, 0.479, 1.469, interval(1.431, 1.509)],
            ["v0001", "rejection", 8, 0.575, 0.175, 2.343, interval(2.222, 2.479)],
        ],
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.rstrip() for line in lines if line.strip()] == [line for line in AT_80.splitlines() if line]
