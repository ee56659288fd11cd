from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from django_realtime.conf import conf
from gunicorn_realtime.bus.client import Subscribed, Subscription

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub(local_bus) -> Iterator[Subscription]:
    """What makes a process count as a hub: it follows the hubs' channel."""
    subscription = Subscription(conf.bus, 30)
    subscription.connect()
    subscription.subscribe([conf.bus.hubs_channel])
    assert isinstance(subscription.read(30), Subscribed)
    yield subscription
    subscription.close()


@pytest.fixture
def news(hub, listen):
    return listen("news")


def rt_publish(*arguments: str, **options) -> str:
    out = StringIO()
    call_command("rt_publish", *arguments, stdout=out, **options)
    return out.getvalue()


def run(*arguments: str, bus: str, **options) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "manage.py", "rt_publish", *arguments],
        cwd=ROOT,
        env={**os.environ, "REALTIME_BUS": bus},
        capture_output=True,
        timeout=60,
        **options,
    )


def test_one_message(news):
    assert rt_publish("news", "hello world") == "Published 1 message to news (1 hub listening)\n"
    assert news.texts(1) == ["hello world"]


def test_an_event_with_a_name(news):
    rt_publish("news", "hello", "--event", "said")

    assert news.next().event == "said"


def test_options_may_stand_between_channel_and_data(news):
    rt_publish("news", "--event", "said", "hello")

    event = news.next()
    assert (event.event, event.data) == ("said", b"hello")


def test_json_is_published_compactly(news):
    rt_publish("news", '{ "a" : [1, "\\u00fc"] }', "--json")

    assert news.texts(1) == ['{"a":[1,"ü"]}']


def test_a_file_is_one_message(news, tmp_path):
    file = tmp_path / "message"
    file.write_bytes(b"two\nlines\xff")

    rt_publish("news", "--file", str(file))

    assert news.next().data == b"two\nlines\xff"


@pytest.mark.parametrize("data", [[], ["-"]])
def test_each_line_of_the_input_is_a_message(news, monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"one\n\r\ntwo \r\nthr\xffee")))

    assert rt_publish("news", *data) == "Published 4 messages to news (1 hub listening)\n"
    assert [news.next().data for _ in range(4)] == [b"one", b"", b"two ", b"thr\xffee"]


def test_quiet(news):
    assert rt_publish("news", "hello", verbosity=0) == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["news", "{", "--json"], "not JSON: Expecting property name"),
        (["news", "NaN", "--json"], "not JSON compliant"),
        (["news", "x", "--file", "y"], "Give DATA or --file, not both"),
        (["news", "--file", "/nowhere/file"], "No such file"),
        (["rt:hubs", "x"], "reserved"),
        (["news", 1048577 * "x"], "1048577 bytes"),
        (["news", "x", "--event", "a\nb"], "must be one line"),
        (["news", "x", "--rate", "0"], "more than 0"),
    ],
)
def test_mistakes_are_told_in_a_sentence(hub, arguments, message):
    with pytest.raises(CommandError, match=message):
        rt_publish(*arguments)


def test_what_was_published_before_a_mistake_is_told(news, monkeypatch):
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"1\n2\n{\n4\n")))

    with pytest.raises(CommandError, match=r"^Published 2 messages to news, then: not JSON: "):
        rt_publish("news", "--json")


def test_nobody_serves_the_local_bus(bus_directory):
    with pytest.raises(CommandError, match=r"^No hub or development server of this project is running"):
        rt_publish("news", "hello")


def test_no_hub_is_connected(local_bus, bus_directory):
    with pytest.raises(CommandError, match=rf"^No hub is connected to local:{bus_directory}"):
        rt_publish("news", "hello")


def test_redis_is_out_of_reach(settings):
    settings.REALTIME = {"BUS": "redis://:secret@127.0.0.1:1/0"}

    with pytest.raises(
        CommandError, match=r"^Nobody can receive: the bus at redis://.*127\.0\.0\.1:1"
    ) as caught:
        rt_publish("news", "hello")
    assert "secret" not in str(caught.value)


def test_the_process_exits_with_0_and_a_summary(news, bus_directory):
    done = run("news", "hello", bus=f"local:{bus_directory}")

    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"Published 1 message to news (1 hub listening)\n"
    assert news.texts(1) == ["hello"]


def test_the_process_exits_with_1_and_a_sentence(bus_directory):
    done = run("news", "hello", bus=f"local:{bus_directory}")

    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.startswith(b"CommandError: No hub or development server of this project is running")
    assert done.stderr.count(b"\n") == 1


def test_lines_are_published_as_they_come(news, bus_directory):
    command = [sys.executable, "manage.py", "rt_publish", "news"]
    env = {**os.environ, "REALTIME_BUS": f"local:{bus_directory}"}
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"first\n")
        process.stdin.flush()
        assert news.texts(1) == ["first"]
        output, _ = process.communicate(b"second\n", timeout=60)

    assert news.texts(1) == ["second"]
    assert output == b"Published 2 messages to news (1 hub listening)\n"


def test_a_rate_bounds_the_messages_and_a_terminal_sees_them_counted(news, bus_directory):
    terminal, stderr = os.openpty()
    command = [sys.executable, "manage.py", "rt_publish", "news", "--rate", "100"]
    env = {**os.environ, "REALTIME_BUS": f"local:{bus_directory}"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
    )
    os.close(stderr)
    started = time.monotonic()
    output, _ = process.communicate(b"x\n" * 40, timeout=60)
    assert time.monotonic() - started >= 39 / 100
    shown = os.read(terminal, 65536)
    os.close(terminal)

    assert news.texts(40) == ["x"] * 40
    assert output == b"Published 40 messages to news (1 hub listening)\n"
    assert b" messages \xe2\x80\xa6" in shown
    assert shown.endswith(b"\r\x1b[K")
