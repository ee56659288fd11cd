"""What counts as passed; the suite itself is run by `scripts/autobahn`."""

from __future__ import annotations

import pytest

from tests.conformance.autobahn import CASES, count_cases, describe, problems_of


def result(behavior: str = "OK", behavior_close: str = "OK") -> dict[str, str]:
    return {"behavior": behavior, "behaviorClose": behavior_close}


def test_good_report_has_no_problems():
    report = {
        "1.1.1": result(),
        "3.2": result("NON-STRICT"),
        "7.1.6": result("INFORMATIONAL", "INFORMATIONAL"),
        "12.1.1": result(),
    }

    assert problems_of(report, 4) == []
    assert describe(report).splitlines() == [
        "group  1: 1 OK",
        "group  3: 1 NON-STRICT",
        "group  7: 1 INFORMATIONAL",
        "group 12: 1 OK",
        "4 cases",
    ]


@pytest.mark.parametrize(
    ("behavior", "behavior_close"),
    [("FAILED", "OK"), ("OK", "FAILED"), ("OK", "UNCLEAN"), ("WRONG CODE", "OK"), ("UNIMPLEMENTED", "OK")],
)
def test_case_that_fails_in_any_way_is_a_problem(behavior, behavior_close):
    report = {"1.1.1": result(), "12.1.1": result(behavior, behavior_close)}

    assert problems_of(report, 2) == [f"case 12.1.1: {behavior}, at its end {behavior_close}"]


def test_missing_cases_are_a_problem():
    assert problems_of({}, 247) == ["there are 0 cases, not 247"]


def test_cases_are_counted_by_their_groups():
    assert sum(CASES.values()) == 517
    assert count_cases(["1.*", "10.*", "12.1.1"]) == 16 + 1 + 1
    with pytest.raises(ValueError, match=r"'12\.1\.\*' is neither a case nor one of 1\.\*, 2\.\*"):
        count_cases(["12.1.*"])
