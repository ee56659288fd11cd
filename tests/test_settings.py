from __future__ import annotations

from dataclasses import fields

import pytest

from gunicorn_realtime.settings import PREFIX, Settings


def test_nothing_needs_to_be_set():
    assert Settings.from_environ({"HOME": "/", "PATH": "/bin"}) == Settings()


@pytest.mark.parametrize("name", [field.name for field in fields(Settings)])
def test_each_setting_is_a_variable_with_its_name(name):
    settings = Settings.from_environ({PREFIX + name.upper(): "7"})

    assert str(getattr(settings, name)) in ("7", "7.0")
    assert type(getattr(settings, name)) is type(getattr(Settings(), name))


def test_durations_may_be_fractions():
    assert Settings.from_environ({"GUNICORN_REALTIME_HEAD_TIMEOUT": "0.5"}).head_timeout == 0.5


@pytest.mark.parametrize("machine", ["a.b", "a b", "é", "x" * 41])
def test_machine_is_a_short_word(machine):
    with pytest.raises(ValueError, match="must be up to 40 letters, digits, '_' and '-'"):
        Settings.from_environ({"GUNICORN_REALTIME_MACHINE": machine})


@pytest.mark.parametrize("name", ["CONNECTIONS", "CONNECTIONS_PER_ADDRESS", "CONNECTIONS_PER_USER"])
def test_zero_connections_mean_no_limit(name):
    assert getattr(Settings.from_environ({PREFIX + name: "0"}), name.lower()) == 0


def test_misspelled_variable_is_named_with_those_that_there_are():
    with pytest.raises(
        ValueError, match=r"^GUNICORN_REALTIME_HUB is not a setting; there are GUNICORN_REALTIME_HUBS, "
    ):
        Settings.from_environ({"GUNICORN_REALTIME_HUB": "2"})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("HUBS", "two", "GUNICORN_REALTIME_HUBS='two' is not a number"),
        ("HUBS", "", "GUNICORN_REALTIME_HUBS='' is not a number"),
        ("HUBS", "1.5", "GUNICORN_REALTIME_HUBS='1.5' is not a number"),
        ("HUBS", "0", "GUNICORN_REALTIME_HUBS=0 must be more than 0"),
        ("CONNECTIONS", "-1", "GUNICORN_REALTIME_CONNECTIONS=-1 must be more than 0"),
        ("FEED_SIZE", "0", "GUNICORN_REALTIME_FEED_SIZE=0 must be more than 0"),
        ("HEAD_TIMEOUT", "-0.1", "GUNICORN_REALTIME_HEAD_TIMEOUT=-0.1 must be more than 0"),
        ("HEAD_TIMEOUT", "nan", "GUNICORN_REALTIME_HEAD_TIMEOUT=nan must be more than 0"),
        ("WRITE_TIMEOUT", "inf", "GUNICORN_REALTIME_WRITE_TIMEOUT=inf must be more than 0"),
    ],
)
def test_bad_value_is_named(name, text, message):
    with pytest.raises(ValueError) as caught:
        Settings.from_environ({PREFIX + name: text})
    assert str(caught.value) == message
