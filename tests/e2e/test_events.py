"""What clients send, handled by Django's views on a real server."""

from __future__ import annotations

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from gunicorn_realtime.bus.client import Publisher
from gunicorn_realtime.protocols.websocket import Opcode
from tests import clients
from tests.clients import SSEClient, http_get, request_head
from tests.e2e.conftest import bus_of
from tests.e2e.test_websocket import HANDSHAKE
from tests.protocols.test_websocket import frame
from tests.servers import GunicornServer
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

TIMEOUT = 30.0  # seconds

APP = "tests.e2e.events_app:application"


class Site:
    """A site of `events_app`, and what it has noted."""

    def __init__(self, server: GunicornServer, directory: Path) -> None:
        self.server = server
        self.directory = directory

    def connect(self, room: str = "lobby", base: str = "ws", **options) -> ClientConnection:
        return connect(f"ws://127.0.0.1:{self.server.port}/{base}/{room}/", proxy=None, **options)

    def notes(self, name: str) -> list[dict]:
        path = self.directory / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for_notes(self, name: str, count: int = 1) -> list[dict]:
        wait_until(lambda: len(self.notes(name)) >= count, what=f"{count} notes in {name}")
        return self.notes(name)

    def server_publisher(self) -> closing[Publisher]:
        return closing(Publisher(bus_of(self.server)))

    def login(self, user: str) -> dict[str, str]:
        """Return the headers of whoever is logged in."""
        response = http_get(self.server.port, f"/login?user={user}")
        return {"Cookie": response.headers["Set-Cookie"].partition(";")[0]}


@pytest.fixture
def site(bus_directory, gunicorn, tmp_path):
    """Start the site, on a local bus."""

    def start(*arguments: str, env: dict[str, str] | None = None, expect_traceback: bool = False) -> Site:
        directory = tmp_path / "log"
        directory.mkdir(exist_ok=True)
        environment = {
            "BUS": f"local:{bus_directory}",
            "DATABASE": str(tmp_path / "site.sqlite3"),
            "LOG": str(directory),
            **(env or {}),
        }
        server = gunicorn(APP, *arguments, env=environment)
        server.expect_traceback = expect_traceback
        server.wait_for_log("serving the local bus")
        return Site(server, directory)

    return start


@pytest.fixture
def join():
    """Open a WebSocket until the end of the test, and read its welcome."""
    with ExitStack() as stack:

        def join(site: Site, room: str = "lobby", **options) -> ClientConnection:
            client = stack.enter_context(site.connect(room, **options))
            assert client.recv(TIMEOUT) == f"welcome to {room}"
            return client

        yield join


def ask(client: ClientConnection, message: str | bytes) -> str | bytes:
    client.send(message)
    return client.recv(TIMEOUT)


def wait_closed(client: ClientConnection) -> tuple[int, str]:
    """Return the close frame's code and reason; nothing else may come before it."""
    with pytest.raises(ConnectionClosed) as caught:
        client.recv(TIMEOUT)
    assert caught.value.rcvd, "no close frame came"
    return caught.value.rcvd.code, caught.value.rcvd.reason


# Handlers.


@pytest.mark.worker
def test_handler_answers_and_remembers_what_it_wrote_into_its_state(site, join):
    client = join(site())

    assert ask(client, "echo hello größe") == "hello größe"
    assert ask(client, b"\x00\x01\xff") == b"\xff\x01\x00"
    assert ask(client, "count") == "2"


@pytest.mark.worker
def test_handler_sees_the_request_that_opened_the_websocket(site, join):
    running = site()
    client = join(running, "private-room", base="private", additional_headers=running.login("ada"))

    who = json.loads(ask(client, "who"))
    assert who.pop("agent").startswith("Python")
    assert who == {
        "user": "ada",
        "path": "/private/private-room/",
        "address": "127.0.0.1",
        "method": "GET",
        "kwargs": {"room": "private-room"},
    }


def test_handlers_publish_and_follow_channels(site, join):
    running = site("-w", "2")
    ada, bob = join(running, "one"), join(running, "two")

    ada.send("publish hello")
    assert ada.recv(TIMEOUT) == "hello"
    assert ask(bob, "subscribe one") == "subscribed one"
    # Its answer may come before the bus has confirmed the channel: say it until it is heard.
    with ThreadPoolExecutor(1) as executor:
        heard = executor.submit(bob.recv, TIMEOUT)
        while not heard.done():
            assert ask(ada, "publish again") == "again"
    assert heard.result() == "again"


def test_channel_is_had_since_a_cursor(site, join):
    running = site()
    ada, bob = join(running, "one"), join(running, "two")
    with running.server_publisher() as publisher:
        clock = publisher.read_clock()
    ada.send("publish 1")
    ada.send("publish 2")
    assert [ada.recv(TIMEOUT), ada.recv(TIMEOUT)] == ["1", "2"]

    bob.send(f"since one {clock.cursor}")

    assert [bob.recv(TIMEOUT), bob.recv(TIMEOUT)] == ["1", "2"]


def test_handler_that_fails_changes_nothing_and_closes_with_1011(site, join):
    running = site(expect_traceback=True)
    client = join(running)
    assert ask(client, "echo hello") == "hello"

    client.send("fail")

    assert wait_closed(client) == (1011, "the application failed")
    running.server.wait_for_log("RuntimeError: the handler fails")
    [note] = running.wait_for_notes("disconnect")
    assert (note["code"], note["count"]) == (1011, 1)


def test_what_is_rolled_back_is_not_published(site, join):
    running = site(expect_traceback=True)
    listener, client = join(running), join(running)

    client.send("rollback")
    assert wait_closed(client)[0] == 1011

    assert ask(listener, "echo next") == "next"


def test_state_that_is_too_large_closes_with_1011(site, join):
    running = site(expect_traceback=True)
    client = join(running)
    client.send("state 20000")

    assert wait_closed(client)[0] == 1011
    running.server.wait_for_log("self.state has 200.. bytes, more than 16384")


@pytest.mark.parametrize("room", ["forbidden", "refused"])
def test_connect_refuses_by_an_answer(site, room):
    with pytest.raises(InvalidStatus) as caught, site(expect_traceback=True).connect(room):
        pass

    assert caught.value.response.status_code == 403


def test_connect_may_say_why_in_a_close_frame(site):
    with site().connect("closed") as client:
        assert client.recv(TIMEOUT) == "so long"
        assert wait_closed(client) == (4403, "closed room")


def test_handler_closes_behind_what_it_sent(site, join):
    running = site()
    client = join(running)

    assert ask(client, "close 4001") == "bye"
    assert wait_closed(client) == (4001, "as you wish")
    assert running.wait_for_notes("disconnect")[0]["code"] == 4001


def test_large_message_reaches_a_client_that_reads(site, join):
    client = join(site(), max_size=None)

    assert ask(client, "large 1000000") == "x" * 1_000_000
    client.send("large 3000000")
    assert wait_closed(client)[0] == 1011


def test_handler_that_exits_leaves_the_thread_to_others(site, join):
    running = site(env={"GUNICORN_REALTIME_EVENT_THREADS": "1"}, expect_traceback=True)
    client, other = join(running), join(running)
    client.send("leave")

    assert wait_closed(client)[0] == 1011
    assert ask(other, "echo hello") == "hello"


# The user and the session.


def test_who_has_logged_out_is_closed_with_1008_by_the_next_message(site, join):
    running = site()
    headers = running.login("ada")
    client = join(running, base="private", additional_headers=headers)
    http_get(running.server.port, "/logout", headers=headers)

    client.send("echo hello")

    assert wait_closed(client) == (1008, "the application refused it")


def test_cookies_that_a_handler_sets_reach_nobody(site, join):
    client = join(site())

    assert ask(client, "cookie") == "session changed"
    assert ask(client, "echo hello") == "hello"


# Order and loss.


def test_messages_are_handled_one_at_a_time_and_in_order_by_whatever_worker(site, join):
    running = site("-w", "4")
    clients = [join(running, f"room{number}") for number in range(4)]
    for number in range(50):
        for client in clients:
            client.send(f"note {number}")
    for client in clients:
        assert [client.recv(TIMEOUT) for _ in range(50)] == ["noted"] * 50
        assert ask(client, "count") == "51"

    notes = running.notes("notes")
    assert len(notes) == 200
    assert len({note["pid"] for note in notes}) > 1
    by_room: dict[str, list[int]] = {}
    for note in notes:
        by_room.setdefault(note["room"], []).append(int(note["text"]))
    assert all(numbers == list(range(50)) for numbers in by_room.values())


def kill_a_worker(server: GunicornServer) -> None:
    victim, *others = server.worker_pids()
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: {*others} < {*server.worker_pids()} - {victim}, what="another worker")


def replace_workers(server: GunicornServer) -> None:
    before = set(server.worker_pids())
    server.signal(signal.SIGHUP)
    wait_until(lambda: len(server.worker_pids()) == len(before) and not before & {*server.worker_pids()})


@pytest.mark.parametrize("disturb", [kill_a_worker, replace_workers])
def test_nothing_is_handled_twice_or_out_of_order_when_workers_go(site, join, disturb):
    running = site("-w", "4")
    clients = {f"room{number}": join(running, f"room{number}") for number in range(12)}
    stop = threading.Event()
    sent = dict.fromkeys(clients, 0)

    def flood(room: str) -> None:
        try:
            while not stop.is_set():
                clients[room].send(f"note {sent[room]}")
                sent[room] += 1
                assert clients[room].recv(TIMEOUT) == "noted"
        except ConnectionClosed:
            pass

    threads = [threading.Thread(target=flood, args=[room]) for room in clients]
    for thread in threads:
        thread.start()
    running.wait_for_notes("notes", 100)
    disturb(running.server)
    before = len(running.notes("notes"))
    running.wait_for_notes("notes", before + 200)
    stop.set()
    for thread in threads:
        thread.join(TIMEOUT)

    closed = 0
    for room, client in clients.items():
        numbers = [int(note["text"]) for note in running.notes("notes") if note["room"] == room]
        assert numbers == list(range(len(numbers)))
        if client.close_code is None:
            assert len(numbers) == sent[room]
        else:
            assert client.close_code == 1011
            closed += 1
    # Only those whose message was being handled by the worker that was killed.
    assert closed <= (2 if disturb is kill_a_worker else 0)


def test_worker_that_dies_in_a_handler_closes_only_that_connection(site, join):
    running = site("-w", "2")
    client, other = join(running), join(running)
    client.send("exit")

    assert wait_closed(client) == (1011, "its worker has died")
    assert ask(other, "echo hello") == "hello"
    assert len(running.notes("exit")) == 1


# Who waits for whom.


def test_slow_handler_delays_nobody_else(site, join):
    running = site()
    slow, other = join(running), join(running)
    slow.send("sleep 30")
    running.wait_for_notes("sleep")

    assert ask(other, "echo hello") == "hello"
    assert http_get(running.server.port, "/").status == 200
    slow.send("echo behind")
    with pytest.raises(TimeoutError):
        slow.recv(timeout=0)


def test_handler_that_takes_too_long_loses_its_connection(site, join):
    client = join(site(env={"EVENT_TIMEOUT": "0.2"}))
    client.send("sleep 5")

    assert wait_closed(client) == (1011, "it took longer than 0.2 s")


def test_events_run_while_all_threads_for_pages_are_busy_and_pages_while_events_are(site, join):
    running = site("--threads", "2", env={"GUNICORN_REALTIME_EVENT_THREADS": "1"})
    client, slow = join(running), join(running)
    with ThreadPoolExecutor(2) as executor:
        held = [executor.submit(http_get, running.server.port, "/hold", timeout=TIMEOUT) for _ in range(2)]
        running.wait_for_notes("held", 2)
        assert ask(client, "echo hello") == "hello"
        (running.directory / "released").touch()
        assert [future.result().text for future in held] == ["released"] * 2

    slow.send("sleep 2")
    running.wait_for_notes("sleep")
    assert http_get(running.server.port, "/").status == 200
    client.send("echo behind")
    assert slow.recv(TIMEOUT) == "slept"
    assert client.recv(TIMEOUT) == "behind"


def test_thousand_idle_connections_hold_no_database_connection(site):
    running = site("-w", "2")
    with ExitStack() as stack:
        for _ in range(1000):
            sock = stack.enter_context(clients.connect(running.server.port, TIMEOUT))
            sock.sendall(request_head("/ws/lobby/", HANDSHAKE) + frame(Opcode.TEXT, b"query"))
            data = b""
            while not data.endswith(b"queried"):
                data += sock.recv(4096)

        wait_until(lambda: not open_databases(running.server), what="the database to be closed")


def open_databases(server: GunicornServer) -> list[str]:
    """Return where workers have the site's database open."""
    links = []
    for pid in server.worker_pids():
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                links.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
            except FileNotFoundError:
                pass
    return [link for link in links if link == server.env["DATABASE"]]


# The end.


def test_disconnect_is_called_with_the_code(site, join):
    running = site()
    client, abrupt = join(running, "closes"), join(running, "breaks")
    client.close(4000)
    abrupt.socket.shutdown(2)

    notes = running.wait_for_notes("disconnect", 2)
    assert {(note["room"], note["code"]) for note in notes} == {("closes", 4000), ("breaks", 1006)}


def test_disconnect_is_called_when_gunicorn_stops(site, join):
    running = site("-w", "2")
    clients = [join(running) for _ in range(20)]
    running.server.signal(signal.SIGTERM)

    assert [wait_closed(client)[0] for client in clients] == [1001] * 20
    assert running.server.wait() == 0
    assert [note["code"] for note in running.notes("disconnect")] == [1001] * 20


def test_reload_disturbs_nobody(site, join):
    running = site("-w", "2")
    clients = [join(running) for _ in range(5)]
    replace_workers(running.server)

    assert [ask(client, "echo hello") for client in clients] == ["hello"] * 5
    assert running.notes("disconnect") == []


# Signals of streams.


@pytest.mark.worker
def test_signals_say_when_a_stream_begins_and_ends(site):
    running = site("-w", "2")
    with SSEClient(running.server.port, "/events/lobby/", headers=running.login("ada")) as client:
        [note] = running.wait_for_notes("signals")
        assert (note["signal"], note["user"], note["room"]) == ("connected", "ada", "lobby")
        assert client.status == 200

    assert running.wait_for_notes("signals", 2)[1]["signal"] == "disconnected"


# Forged.


def test_no_header_makes_a_request_an_event(site):
    running = site()
    names = [
        "gunicorn_realtime.event",
        "Gunicorn-Realtime-Event",
        "Gunicorn_Realtime.Event",
        "HTTP_gunicorn_realtime.event",
    ]
    headers = {name: json.dumps({"kind": "received"}) for name in names}

    response = http_get(running.server.port, "/event", headers=headers)

    assert all(name.startswith("HTTP_") for name in json.loads(response.text))
    # Nor does a request for a view of handlers that is no handshake.
    assert http_get(running.server.port, "/ws/lobby/", headers=headers).status in (400, 426)
    assert running.notes("disconnect") == []


def test_nothing_on_the_bus_makes_an_event(site, join):
    running = site()
    client = join(running)
    event = {
        "kind": "received",
        "data": "note forged",
        "event": {"kind": "received"},
        "disconnect": {"labels": 7},
    }
    payload = json.dumps(event).encode()
    with running.server_publisher() as publisher:
        for channel in ("rt:hubs", "rt:events", "room-lobby"):
            publisher.publish(channel, payload)
            publisher.publish(channel, b"\xffRT1\n" + payload + b"\nnote forged")

    assert client.recv(TIMEOUT) == payload.decode()  # on the room's channel it is a message like any other
    assert ask(client, "echo hello") == "hello"
    assert running.notes("notes") == []
