"""What the benchmarks say of their rows, and that the README shows what was measured."""

import json

import pytest

from bct.errors import BctError
from bct.files import ROOT
from benchmarks.common import RESULTS, Goal, Row, compare, page, table
from benchmarks.readme import MARKER, filled, readme_table

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_times_is_the_median_of_ratios_of_turns():
    row = Row("x", ours=[1.0, 2.0, 10.0], classic=[2.0, 8.0, 10.0], limit=[0.5])
    assert row.times == 2.0  # of 2, 4 and 1; the medians' ratio would be 4
    assert row.share == 0.25
    assert Row("x", ours=[1.0, 2.0, 3.0], classic=[10.0]).times == 5.0
    assert Row("x", ours=[1.0]).times is None and Row("x", ours=[1.0]).share is None


def test_a_goal_is_reached_or_named():
    goal = Goal(times=2, share=0.5, at_most=3, gib=1)
    assert Row("x", [2.0], [4.0], [1.0], gib=1.0, goal=goal).missed() == []
    missed = Row("x", [4.0], [4.0], [1.0], gib=2.0, goal=goal).missed()
    assert missed == ["2 times", "50%", "3 s", "1 GiB"]
    # nothing measured reaches no goal
    assert Row("x", [2.0], goal=Goal(times=2, share=0.5)).missed() == ["2 times", "50%"]
    assert "no: 2 times" in table([Row("x", [4.0], [4.0], goal=Goal(times=2))])


def test_rates_are_shown_as_rates():
    row = Row("x", [0.5, 1.0, 0.25], unit="images/s", items=100)
    assert row.shown(row.ours) == "200 images/s (100 to 400)"
    assert Row("x", [0.0123], unit="s").shown([0.0123]) == "0.0123 s"
    assert row.shown([]) == ""


def test_compare_calls_in_turn():
    calls = []
    row = compare(
        "x", lambda: calls.append("o"), lambda: calls.append("c"), lambda: calls.append("l"),
        repeats=2,
    )  # fmt: skip
    assert "".join(calls) == "ocl" * 3
    assert len(row.ours) == len(row.classic) == len(row.limit) == 2
    calls.clear()
    row = compare("x", lambda: calls.append("o"), lambda: calls.append("c"), repeats=2, once=True)
    assert "".join(calls) == "oooc" and len(row.classic) == 1


def test_readme_shows_what_was_measured():
    assert filled(README) == README, "run python -m benchmarks.readme"


def test_pages_are_those_of_their_figures():
    files = sorted(RESULTS.glob("*.json"))
    assert files
    for file in files:
        result = json.loads(file.read_text(encoding="utf-8"))
        assert file.with_suffix(".md").read_text(encoding="utf-8") == page(result), file


def test_readme_table_on_a_machine_without_results():
    with pytest.raises(BctError, match="does not exist"):
        filled(README, "no-such-machine")
    with pytest.raises(BctError, match="no speed marker"):
        filled(MARKER.sub("", README))


def test_readme_table_has_the_rows_with_something_to_compare():
    result = {
        "machine": "m",
        "benchmarks": {
            "b": {"rows": [{"workload": "w", "ours": [1.0], "classic": [3.0], "limit": [0.5],
                            "limit_name": "l", "unit": "s", "items": 1.0, "gib": 1.0, "goal": {}}]},
            "a": {"rows": [{"workload": "v", "ours": [1.0], "classic": [], "limit": [],
                            "limit_name": "", "unit": "s", "items": 1.0, "gib": 1.0, "goal": {}}]},
        },
    }  # fmt: skip
    lines = readme_table(result).splitlines()
    assert lines[2:] == ["| w | 1 s | 3 s | 3.0 | 50% |"]
