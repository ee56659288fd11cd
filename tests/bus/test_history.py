from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from gunicorn_realtime.bus.history import ENTRY_OVERHEAD, History, make_epoch

NOW = 1_700_000_000_000_000
SECOND = 1_000_000
TTL = 60 * SECOND


def add(history: History, now: int, key: bytes = b"news", body: bytes = b"", count: int = 100) -> int:
    return history.add(now, key, body, b"token", count, TTL).id


def test_epochs_are_six_random_characters():
    assert re.fullmatch("[a-z0-9]{6}", make_epoch())
    assert History().epoch != History().epoch


@given(st.lists(st.tuples(st.integers(NOW - SECOND, NOW + SECOND), st.sampled_from([b"a", b"b"]))))
def test_ids_rise_over_all_logs_whatever_the_time_does(moments):
    history = History()
    ids = [add(history, now, key) for now, key in moments]
    assert ids == sorted(set(ids))


def test_each_entry_names_the_one_before_it_also_if_that_is_dropped():
    history = History()
    ids = [add(history, NOW + n, count=2) for n in range(4)]

    log = history.snapshot(NOW + 9, b"news", 10, TTL)

    assert [entry.id for entry in log.entries] == ids[2:]
    assert [entry.previous for entry in log.entries] == ids[1:3]
    assert log.floor == ids[1]


def test_without_a_log_nothing_newer_than_its_ttl_is_missing():
    history = History()
    assert history.snapshot(NOW, b"news", 10, TTL).floor == NOW - TTL
    assert history.range(NOW, b"news", 0, 10, TTL).floor == NOW - TTL
    entry = history.add(NOW, b"news", b"", b"token", 10, TTL)
    assert entry.previous == entry.id - TTL


def test_log_is_dropped_its_ttl_after_its_newest_entry():
    history = History()
    add(history, NOW)
    last = add(history, NOW + 50 * SECOND)

    assert len(history.snapshot(last + TTL, b"news", 10, TTL).entries) == 2
    log = history.snapshot(last + TTL + 1, b"news", 10, TTL)

    assert log.entries == []
    assert log.floor == last + 1
    assert (history.logs, history.size) == ({}, 0)


def test_logs_that_nobody_reads_are_dropped_too():
    history = History()
    for n in range(100):
        add(history, NOW + n, b"room-%d" % n)
    add(history, NOW + 2 * TTL, b"other")
    assert list(history.logs) == [b"other"]


def test_range_gives_the_oldest_after_an_id():
    history = History()
    ids = [add(history, NOW + n) for n in range(5)]

    log = history.range(NOW + 9, b"news", ids[1], 2, TTL)

    assert [entry.id for entry in log.entries] == ids[2:4]
    assert log.floor == ids[1]
    assert history.range(NOW + 9, b"news", ids[4], 2, TTL).floor == ids[4]


def test_token_is_found_among_what_came_since():
    history = History()
    id = add(history, NOW)
    add(history, NOW + SECOND, b"sports")
    assert history.find(NOW + SECOND, b"news", b"token", SECOND) == id
    assert history.find(NOW + SECOND, b"news", b"other", SECOND) is None
    assert history.find(NOW + SECOND, b"news", b"token", SECOND // 2) is None
    assert history.find(NOW + SECOND, b"weather", b"token", SECOND) is None


body_sizes = st.integers(0, 2000)


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), body_sizes)))
def test_memory_is_bounded_and_floors_tell_what_was_dropped(messages):
    history = History(max_size=4000 + ENTRY_OVERHEAD)
    ids: dict[bytes, list[int]] = {}
    for n, (key, size) in enumerate(messages):
        ids.setdefault(key, []).append(add(history, NOW + n, key, bytes(size)))
        assert history.size <= history.max_size
        assert history.size == sum(entry.size for log in history.logs.values() for entry in log.entries)

    for key, published in ids.items():
        kept = history.snapshot(NOW + 9999, key, 1000, TTL)
        assert [entry.id for entry in kept.entries] == [id for id in published if id > kept.floor]
        assert kept.floor in (published[0] - TTL, *published)
        page = history.range(NOW + 9999, key, 0, 1000, TTL)
        assert (page.floor, page.entries) == (kept.floor, kept.entries)


def test_memory_is_taken_from_the_oldest_of_all_logs():
    history = History(max_size=4 * ENTRY_OVERHEAD)
    for n, key in enumerate([b"a", b"b", b"a", b"b", b"b"]):
        add(history, NOW + n, key)

    assert [entry.id for entry in history.logs[b"a"].entries] == [NOW + 2]
    assert [entry.id for entry in history.logs[b"b"].entries] == [NOW + 3, NOW + 4]
