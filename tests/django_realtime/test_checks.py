from __future__ import annotations

from operator import attrgetter

import pytest
from django.core.checks import run_checks

from gunicorn_realtime.bus.channel import SlowClient


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
        {"CHANNELS": {}},
        {"CHANNELS": {"*": {"history": 0, "ttl": 0}, "news": {"history": 100_000, "ttl": 0.5}}},
        {"CHANNELS": {"a*": {"slow_client": "latest"}, "b": {"slow_client": SlowClient.RESUME}, "c": {}}},
        {"ORIGINS": ["https://example.com", "http://*.example.com:8000", "HTTPS://x", "*"]},
        {"ORIGINS": ()},
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
        ("ORIGINS", None, "E015"),
        ("ORIGINS", "https://example.com", "E015"),
        ("ORIGINS", ["example.com"], "E015"),
        ("ORIGINS", ["https://example.com/"], "E015"),
        ("ORIGINS", ["https://"], "E015"),
        ("ORIGINS", [7], "E015"),
        ("CHANNELS", None, "E009"),
        ("CHANNELS", ["news"], "E009"),
        ("CHANNELS", {"news": 100}, "E009"),
        ("CHANNELS", {7: {}}, "E009"),
        ("CHANNELS", {"": {}}, "E010"),
        ("CHANNELS", {"rt:*": {}}, "E010"),
        ("CHANNELS", {"a\tb*": {}}, "E010"),
        ("CHANNELS", {201 * "x": {}}, "E010"),
        ("CHANNELS", {"*": {"size": 1}}, "E011"),
        ("CHANNELS", {"*": {7: 1}}, "E011"),
        ("CHANNELS", {"*": {"history": -1}}, "E012"),
        ("CHANNELS", {"*": {"history": "100"}}, "E012"),
        ("CHANNELS", {"*": {"history": True}}, "E012"),
        ("CHANNELS", {"*": {"history": 1.0}}, "E012"),
        ("CHANNELS", {"*": {"history": 100_001}}, "E012"),
        ("CHANNELS", {"*": {"ttl": "300"}}, "E013"),
        ("CHANNELS", {"*": {"ttl": -1, "history": 0}}, "E013"),
        ("CHANNELS", {"*": {"ttl": float("inf")}}, "E013"),
        ("CHANNELS", {"*": {"ttl": 10**9}}, "E013"),
        ("CHANNELS", {"*": {"ttl": 0}, "news": {"slow_client": "latest"}}, "E013"),
        ("CHANNELS", {"*": {"history": 0, "ttl": 0}, "news": {"history": 1}}, "E013"),
        ("CHANNELS", {"*": {"slow_client": "skip"}}, "E014"),
        ("CHANNELS", {"*": {"slow_client": None}}, "E014"),
        ("CHANNELS", {"*": {"slow_client": []}}, "E014"),
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


def test_a_channel_s_misspelled_rule_is_reported_with_the_right_one(settings):
    settings.REALTIME = {"CHANNELS": {"news": {"histroy": 7, "slow_client": "lastest"}}}

    rule, policy = sorted(run_checks(tags=["realtime"]), key=attrgetter("id"))  # Django keeps a set

    assert rule.msg == "REALTIME[\"CHANNELS\"]['news']: 'histroy' is no rule of a channel."
    assert rule.hint == "Did you mean 'history'?"
    assert policy.msg == "REALTIME[\"CHANNELS\"]['news'][\"slow_client\"] must be one of 'resume', 'latest'."
    assert policy.hint == "Did you mean 'latest'?"


def test_each_wrong_pattern_is_reported(settings):
    settings.REALTIME = {"CHANNELS": {"rt:a": {}, "b": {}, "rt:c*": {}}}

    messages = [error.msg for error in run_checks(tags=["realtime"])]

    assert messages == [
        "REALTIME[\"CHANNELS\"]['rt:a'] can match no channel: "
        "channel 'rt:a': names that begin with 'rt:' are reserved.",
        "REALTIME[\"CHANNELS\"]['rt:c*'] can match no channel: "
        "channel 'rt:c*': names that begin with 'rt:' are reserved.",
    ]


def test_each_wrong_origin_is_reported(settings):
    settings.REALTIME = {"ORIGINS": ["a.example", "https://b.example", "c.example"]}

    messages = [error.msg for error in run_checks(tags=["realtime"])]

    assert messages == [f"REALTIME[\"ORIGINS\"]: '{name}.example' is no origin." for name in "ac"]


def deploy_ids() -> list[str]:
    return [message.id for message in run_checks(tags=["realtime"], include_deployment_checks=True)]


def test_a_deployment_is_warned_of_a_redis_that_may_evict_history(settings, redis_server):
    settings.REALTIME = {"BUS": redis_server.url}
    assert deploy_ids() == []

    redis_server.cli("config", "set", "maxmemory", "100mb")
    redis_server.cli("config", "set", "maxmemory-policy", "allkeys-lru")

    assert deploy_ids() == ["django_realtime.W001"]
    assert run_checks(tags=["realtime"]) == []


@pytest.mark.parametrize("bus", ["unix:///nowhere/redis.sock", "local:", "nonsense:"])
def test_eviction_is_asked_of_a_redis_in_reach_alone(settings, bus):
    settings.REALTIME = {"BUS": bus}

    assert "django_realtime.W001" not in deploy_ids()
