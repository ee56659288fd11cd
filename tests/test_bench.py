"""The bench works. Its figures here are too small to mean anything."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from xml.etree import ElementTree

import pytest

from bench.bars import Bar
from bench.load import Load, compile_programs, faults, measure
from bench.ranking import rank
from bench.report import Report, comparison
from bench.runs import Bench
from bench.servers import Server, limit
from bench.svg import Line, line_plot
from tests.servers import ROOT


@pytest.mark.e2e
def test_one_command_prints_the_table_and_writes_json(tmp_path):
    path = tmp_path / "bench.json"
    options = [
        "--only",
        "limit,hub",
        "--connections",
        "50",
        "--pairs",
        "1",
        "--seconds",
        "0.5",
        "--attempts",
        "1",
    ]

    result = subprocess.run(
        [sys.executable, "-m", "bench", *options, "--json", path], cwd=ROOT, capture_output=True, text=True
    )

    assert result.returncode == 0, result.stderr
    report = json.loads(path.read_text())
    limit_row, hub_row = report["standings"]
    assert (limit_row["name"], hub_row["name"]) == ("limit", "hub")
    assert limit_row["ratio"] == 1
    assert 0 < hub_row["ratio"] < 3
    assert hub_row["flood_per_cpu"] > hub_row["per_cpu"] > 1000
    assert 0 < hub_row["p50_ms"] <= hub_row["p99_ms"]
    assert limit_row["lost"] == hub_row["lost"] == 0
    assert [row["server"] for row in report["rows"]] == ["limit", "limit", "hub", "hub"]
    assert all(
        row["deliveries"] >= 50 * row["messages"] > 0 and "other_cpu_s" in row for row in report["rows"]
    )
    table = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert table[0].startswith("| server ")
    assert [line.split("|")[1].strip() for line in table[2:]] == [limit_row["title"], hub_row["title"]]


@pytest.mark.e2e
@pytest.mark.parametrize(("channels", "all_right"), [(7, True), (5, False)])
def test_load_client_notices_a_message_of_another_channel(channels, all_right):
    compile_programs()
    load = Load(connections=21, messages=70, rate=1000, channels=7, settle=0.1, drain=0.3)

    with limit(channels) as target:
        result = measure(target, load)

    assert (faults(result) == 0) is all_right
    assert (result["deliveries"] == 210) is all_right


def test_peer_that_is_not_installed_is_named_with_what_to_do():
    peer = Server("peer", "Peer", limit, missing=lambda: "peer is not installed: `make bench` installs it")

    report = Report({"processor": "one", "system": "none"}, [], rank(Bench(rounds=1), [peer]))

    assert "| Peer " in report.text()
    assert "left out: peer is not installed: `make bench` installs it" in report.text()


def test_server_that_fails_is_named_with_its_error():
    def start():
        raise AssertionError("Peer has ended: no such option")

    [standing] = rank(Bench(rounds=1), [Server("peer", "Peer", start)])

    assert standing.remark == "failed: Peer has ended: no such option"


def test_rounds_alternate_which_is_first():
    taken = []
    takes = [partial(taken.append, "limit"), partial(taken.append, "hub")]

    list(Bench(rounds=3).in_turns(*takes))

    assert taken == ["limit", "hub", "hub", "limit", "limit", "hub"]


@pytest.mark.parametrize(("noises", "kept"), [([0.3, 0.05], 0.05), ([0.3, 0.4, 0.5, 0.0], 0.5)])
def test_measurement_on_a_noisy_machine_is_repeated_a_few_times(noises, kept):
    results = iter([RESULT | {"other_share": noise} for noise in noises])
    bench = Bench(rounds=1, attempts=3)

    result = bench.when_quiet("run", "hub", lambda: next(results))

    assert result["other_share"] == kept
    assert [row["other_share"] for row in bench.rows] == noises[:3]


@pytest.mark.parametrize(
    ("aim", "bound", "values", "faults", "verdict"),
    [
        (0.8, 0.6, [0.9, 0.8, 0.1], 0, "met"),
        (0.8, 0.6, [0.7], 0, "short of the aim"),
        (0.8, 0.6, [0.5], 0, "FAILED"),
        (0.8, 0.6, [0.9], 1, "FAILED"),
        (1.2, 1.5, [1.1], 0, "met"),
        (1.2, 1.5, [1.3], 0, "short of the aim"),
        (1.2, 1.5, [1.6], 0, "FAILED"),
        (0, 0, [0, 0], 0, "met"),
        (0, 0, [1, 1], 0, "FAILED"),
        (None, None, [7], 0, ""),
        (None, None, [7], 1, "FAILED"),
    ],
)
def test_bar_is_judged_by_its_median(aim, bound, values, faults, verdict):
    assert Bar("run", 10, "figure", values, aim, bound, faults=faults).verdict == verdict


def test_earlier_run_is_compared_by_name():
    earlier, now = (
        Report({"processor": "one", "system": "none"}, [], bars=bars).as_json()
        for bars in (
            [Bar("paced", 10, "ratio", [0.8]), Bar("gone", 10, "ratio", [1])],
            [Bar("paced", 10, "ratio", [0.6]), Bar("new", 10, "ratio", [1])],
        )
    )

    assert comparison(earlier, now).splitlines()[2:] == [
        "| paced | 10          | ratio  | 0.80    | 0.60 | -25%   |",
    ]


def test_plot_is_svg_with_a_named_line_for_each_server():
    lines = [Line("hub", [(10, 7.5), (1000, 9)]), Line("<limit>", [(10, 7), (1000, 8.9)])]

    svg = ElementTree.fromstring(line_plot("title", "connections", "µs", lines))

    texts = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"title", "connections", "µs", "hub", "<limit>", "10", "1,000", "0"} <= set(texts)


RESULT = {
    **{"connections": 10, "deliveries_per_server_cpu_s": 100_000, "deliveries_per_s": 10_000, "p50_ms": 1},
    **{"lost": 0, "duplicated": 0, "out_of_order": 0, "foreign": 0, "closed": 0, "failed": 0},
}
