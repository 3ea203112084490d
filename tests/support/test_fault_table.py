"""The table of faults is complete: a row without a test is missing, and one failed test fails its row."""

from __future__ import annotations

from fault_table import FAILED, MISSING, PASSED, ROWS, Row, Table


def test_a_row_is_missing_until_a_test_of_it_passed_and_failed_as_soon_as_one_did() -> None:
    row = Row("YAML")
    assert row.result == MISSING
    row.tests[PASSED] += 3
    assert row.result == PASSED
    row.tests[FAILED] += 1
    assert row.result == FAILED


def test_it_asks_for_the_small_count_unless_the_table_is_wanted() -> None:
    assert (Row("YAML").count(3, 500), Row("YAML", full=True).count(3, 500)) == (3, 500)


def test_what_was_done_is_added_up_over_the_tests_of_a_row() -> None:
    row = Row("real SIGKILL of writers")
    for _ in range(2):
        row.did(20, "kills")
        row.struck.update({"write": 5, "sync": 15})
        row.times["leaving"] += [0.5, 1.5, 0.25]
    found = row.to_json()
    assert (found["row"], found["holds"]) == (row.name, ROWS[row.name])
    assert (found["counts"], found["struck"]) == ({"kills": 40}, {"sync": 30, "write": 10})
    assert found["seconds"] == {"leaving": {"median": 0.5, "max": 1.5, "of": 6}}


def test_the_whole_table_lists_every_row_in_its_order_and_a_part_only_what_ran() -> None:
    table = Table(full=True)
    table.rows["YAML"].tests[PASSED] += 1
    whole = table.lines(everything=True)
    assert [line.split("  ")[0] for line in whole] == list(ROWS)
    assert sum(line.split()[-3] == MISSING for line in whole) == len(ROWS) - 1
    assert table.lines(everything=False) == [f"{'YAML':<42} {PASSED:<8} 1 tests"]
