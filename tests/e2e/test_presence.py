"""Who is there is right, per member and not per tab, whatever crashes."""

from __future__ import annotations

import json
import os
import signal
from contextlib import ExitStack, closing

import pytest

from gunicorn_realtime.bus.client import Publisher
from tests.clients import SSEClient, http_get
from tests.e2e.conftest import DJANGO_APP, bus_of
from tests.e2e.test_websocket import open_websocket
from tests.servers import GunicornServer
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

# Long enough for a hub's successor and its clients, also on a slow machine; and never.
SHORT, NEVER = "10", "3600"  # seconds


@pytest.fixture
def start(gunicorn, redis_server, tmp_path):
    """Start a site on the same Redis as the others: start(lifetime=, linger=)."""

    def start(lifetime: str = NEVER, linger: str = NEVER, **options) -> GunicornServer:
        env = {
            "BUS": redis_server.url,
            "DATABASE": str(tmp_path / "site.sqlite3"),
            "GUNICORN_REALTIME_PRESENCE_LIFETIME": lifetime,
            "GUNICORN_REALTIME_PRESENCE_LINGER": linger,
        }
        server = gunicorn(DJANGO_APP, env=env, **options)
        wait_until(server.hub_pids)
        return server

    return start


@pytest.fixture(params=["local", "redis"])
def server(request) -> GunicornServer:
    """One on whose bus members leave soon after their last connection."""
    times = {"lifetime": SHORT, "linger": "0.1"}
    if request.param == "redis":
        return request.getfixturevalue("start")(**times)
    env = {f"GUNICORN_REALTIME_PRESENCE_{name.upper()}": value for name, value in times.items()}
    return request.getfixturevalue("site")(env=env)


@pytest.fixture
def hold():
    """Open something until the end of the test: hold(context manager)."""
    with ExitStack() as stack:
        yield stack.enter_context


def enter(server: GunicornServer, name: str) -> SSEClient:
    """Open a member's stream, and wait until it counts."""
    client = SSEClient(server.address, f"/room/events?name={name}")
    wait_until(lambda: name in members(server), what=name)
    return client


def members(server: GunicornServer) -> list[str]:
    return json.loads(http_get(server.address, "/room/members").body)


class Watcher:
    """Sees who comes and goes, and is not counted; may go on at another server, or after a crash."""

    def __init__(self, server: GunicornServer) -> None:
        self.server = server
        self._client = SSEClient(server.address, "/room/events")

    def come_back(self) -> None:
        headers = {"Last-Event-ID": self._client.last_event_id}
        self._client.close()
        self._client = SSEClient(self.server.address, "/room/events", headers)

    def next(self) -> str:
        """Return who has joined (+) or left (-), or what was published otherwise."""
        event = self._client.next_event(60)
        if event.event != "presence":
            return event.data
        fields = json.loads(event.data)
        return {"join": "+", "leave": "-"}[fields["type"]] + fields["member"]

    def news(self) -> list[str]:
        """Return all that has happened, up to now."""
        http_get(self.server.address, "/publish?channel=room&data=now")
        return list(iter(self.next, "now"))

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def watch(hold):
    return lambda server: hold(closing(Watcher(server)))


@pytest.fixture
def entries(redis_server):
    """Return the entries in the room: of which member and which hub."""
    with redis_server.client() as client:
        yield lambda: set(client.zrange("rt:entries:room", 0, -1))


def test_member_is_there_from_the_first_connection_to_the_last(server, watch, hold):
    watcher = watch(server)

    tab, websocket = enter(server, "ada"), hold(open_websocket(server, "/room/websocket?name=ada"))
    bob = enter(server, "bob")
    assert watcher.news() == ["+ada", "+bob"]
    tab.close()
    bob.close()
    assert watcher.next() == "-bob"
    assert members(server) == ["ada"]
    websocket.close()

    assert watcher.next() == "-ada"
    assert members(server) == []


def test_reload_of_a_page_is_no_news(start, watch, hold, entries):
    server = start()
    watcher = watch(server)
    for _ in range(3):
        before = len(server.log())
        hold(enter(server, "ada")).close()
        server.wait_for_log("the client left", after=before)
    first = hold(enter(server, "ada"))
    hold(enter(server, "ada"))
    first.close()

    assert watcher.news() == ["+ada"]
    assert members(server) == ["ada"]
    assert len(entries()) == 1


def test_clients_of_a_killed_hub_that_come_back_have_neither_left_nor_joined(start, watch, hold, entries):
    server = start(lifetime=SHORT)
    watcher = watch(server)
    clients = {name: hold(enter(server, name)) for name in ("ada", "bob", "eve")}
    assert watcher.news() == ["+ada", "+bob", "+eve"]
    before = entries()

    (hub,) = server.hub_pids()
    os.kill(hub, signal.SIGKILL)
    for client in clients.values():
        client.wait_closed()
    watcher.come_back()
    for name in ("ada", "bob"):
        hold(enter(server, name))

    assert watcher.next() == "-eve"  # who did not come back
    wait_until(lambda: not before & entries(), what="the end of the dead hub's entries")
    assert watcher.news() == []
    assert members(server) == ["ada", "bob"]


def test_who_was_on_a_server_that_died_leaves_by_another(start, watch, hold):
    doomed, server = start(lifetime=SHORT), start(lifetime=SHORT)
    watcher = watch(server)
    for name in ("ada", "bob"):
        hold(enter(doomed, name))
    hold(enter(server, "bob"))
    assert members(doomed) == ["ada", "bob"]

    doomed.kill_all()

    wait_until(lambda: members(server) == ["bob"], what="the end of ada's entry")
    assert [watcher.next() for _ in range(3)] == ["+ada", "+bob", "-ada"]
    assert watcher.news() == []


def test_members_are_right_when_no_hub_is_left(start, hold):
    server = start(lifetime="3")
    hold(enter(server, "ada"))
    with closing(Publisher(bus_of(server))) as publisher:
        assert publisher.members("room") == ["ada"]
        server.kill_all()
        wait_until(lambda: publisher.members("room") == [], what="the end of ada's entry")


def test_members_of_a_server_that_stops_leave_by_another(start, watch, hold):
    stopping, server = start(linger="0.1"), start(lifetime=SHORT)
    watcher = watch(server)
    hold(enter(stopping, "ada"))

    stopping.stop()

    assert [watcher.next(), watcher.next()] == ["+ada", "-ada"]


def test_everybody_is_there_again_after_redis_has_lost_its_memory(start, hold, redis_server):
    server = start()
    for name in ("ada", "bob"):
        hold(enter(server, name))

    redis_server.restart()

    wait_until(lambda: members(server) == ["ada", "bob"], what="both members")


def test_nobody_leaves_because_redis_was_held_up(start, watch, hold, redis_server):
    servers = [start(lifetime="4", linger="0.1") for _ in range(2)]
    watcher = watch(servers[0])
    for server, name in zip(servers, ("ada", "bob"), strict=True):
        hold(enter(server, name))
    enter(servers[0], "eve").close()
    assert [watcher.next() for _ in range(4)] == ["+ada", "+bob", "+eve", "-eve"]  # it is being swept

    redis_server.pause()
    for server in servers:
        server.wait_for_log("does not know who is here")  # after the 5 s that an answer may take
    redis_server.resume()

    wait_until(lambda: members(servers[0]) == ["ada", "bob"], what="both members")
    assert watcher.news() == []


def test_manage_py_prints_who_is_there(start, hold, redis_server):
    server = start()
    hold(enter(server, "bob"))
    hold(enter(server, "ada"))
    server.env["REALTIME_BUS"] = redis_server.url

    assert server.manage("rt_presence", "room").stdout == "ada\nbob\n"
