"""What counts as passed; the suites themselves are run by `scripts/socketio-suites`."""

from __future__ import annotations

import pytest

from tests.conformance.socketio import SUITES, Outcome, outcome_of, problems_of


@pytest.mark.parametrize(
    ("output", "outcome"),
    [
        ("  Engine.IO\n    ✔ a test\n\n\n  25 passing (5s)\n\n", Outcome(25)),
        ("\n  23 passing (3s)\n  1 pending\n\n", Outcome(23, pending=1)),
        ("\n  30 passing (6s)\n  2 failing\n\n  1) should work\n", Outcome(30, failing=2)),
        ("Error: Cannot find package 'mocha'\n", Outcome(0)),
    ],
)
def test_counts_are_read_from_the_end_of_the_report(output, outcome):
    assert outcome_of(output) == outcome


def test_expected_counts_are_no_problem():
    assert problems_of(SUITES) == []


@pytest.mark.parametrize("outcome", [Outcome(31), Outcome(31, failing=1), Outcome(31, pending=1), Outcome(0)])
def test_test_that_fails_or_is_missing_is_a_problem(outcome):
    assert problems_of({**SUITES, "socketio-v5": outcome}) == [
        f"socketio-v5: {outcome}, expected 32 passing, 0 pending, 0 failing"
    ]
