from __future__ import annotations

import pytest
from django.core.checks import run_checks


def ids(settings, **values) -> list[str]:
    settings.REALTIME = values
    return [error.id for error in run_checks(tags=["realtime"])]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"BUS": "local:"},
        {"BUS": "local:/run/site"},
        {"BUS": "redis://:secret@localhost:6379/0"},
        {"BUS": "rediss://redis.example:6380/1"},
        {"BUS": "unix:///run/redis.sock?db=2"},
        {"PREFIX": "site:", "BUS_TIMEOUT": 1, "HEARTBEAT": 0.5, "RETRY": [0, 2.5], "MAX_MESSAGE_SIZE": 1},
    ],
)
def test_right_settings_have_no_errors(settings, values):
    assert ids(settings, **values) == []


@pytest.mark.parametrize(
    ("key", "value", "error_id"),
    [
        ("BUS", None, "E003"),
        ("BUS", "memcached://localhost", "E003"),
        ("BUS", "redis+cluster://localhost", "E003"),
        ("BUS", "redis://localhost:port", "E003"),
        ("BUS", "local:relative", "E003"),
        ("BUS", "local:/" + 100 * "x", "E003"),
        ("PREFIX", None, "E004"),
        ("PREFIX", "a\nb", "E004"),
        ("BUS_TIMEOUT", 0, "E005"),
        ("BUS_TIMEOUT", "2", "E005"),
        ("HEARTBEAT", -1, "E006"),
        ("HEARTBEAT", True, "E006"),
        ("HEARTBEAT", float("nan"), "E006"),
        ("RETRY", 3, "E007"),
        ("RETRY", (5, 1), "E007"),
        ("RETRY", (1, float("inf")), "E007"),
        ("MAX_MESSAGE_SIZE", 0, "E008"),
        ("MAX_MESSAGE_SIZE", 1.5, "E008"),
    ],
)
def test_wrong_values_are_reported(settings, key, value, error_id):
    assert ids(settings, **{key: value}) == [f"django_realtime.{error_id}"]


@pytest.mark.parametrize("value", [None, "redis://localhost", ["BUS"]])
def test_anything_but_a_dictionary_is_one_error(settings, value):
    settings.REALTIME = value

    assert [error.id for error in run_checks(tags=["realtime"])] == ["django_realtime.E001"]


def test_no_setting_at_all_is_right(settings):
    del settings.REALTIME

    assert run_checks(tags=["realtime"]) == []


def test_a_misspelled_key_is_reported_with_the_right_one(settings):
    settings.REALTIME = {"HEARTBEATS": 20}

    [error] = run_checks(tags=["realtime"])

    assert error.id == "django_realtime.E002"
    assert error.msg == "REALTIME['HEARTBEATS'] is no setting."
    assert error.hint == "Did you mean 'HEARTBEAT'?"


def test_a_key_like_no_other_is_reported_with_all(settings):
    settings.REALTIME = {7: True}

    [error] = run_checks(tags=["realtime"])

    assert error.id == "django_realtime.E002"
    assert "BUS, PREFIX" in error.hint


def test_a_password_is_never_shown(settings):
    settings.REALTIME = {"BUS": "redis://user:hunter2/@localhost"}

    [error] = run_checks(tags=["realtime"])

    assert "hunter2" not in str(error)
