from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gunicorn_realtime.bus import local
from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.bus.client import Outgoing, Publisher, Received, Subscription
from gunicorn_realtime.bus.local import MAX_MESSAGE_SIZE, LocalBus, local_directory, own_local_bus
from gunicorn_realtime.bus.message import MAX_HEADER_SIZE
from gunicorn_realtime.errors import BusUnavailable
from gunicorn_realtime.protocols.resp import encode_array, encode_bulk_string
from tests.bus.conftest import TIMEOUT, follow
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


@pytest.fixture
def bus(directory: Path) -> Iterator[LocalBus]:
    bus = LocalBus(str(directory))
    assert bus.try_own()
    yield bus
    bus.close()


class RawClient:
    """Speaks RESP by hand, as somebody with netcat does."""

    def __init__(self, directory: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(TIMEOUT)
        self._socket.connect(str(directory / "bus.sock"))

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            assert part, f"the bus has closed the connection after {data!r}"
            data += part
        return data

    def read_to_end(self) -> bytes:
        data = b""
        while part := self._socket.recv(65536):
            data += part
        return data

    def ask(self, command: bytes) -> bytes:
        """Send an inline command, then QUIT, and return the reply to the first."""
        self.send(command + b"\r\nQUIT\r\n")
        return self.read_to_end().removesuffix(b"+OK\r\n")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def raw_client(bus: LocalBus, directory: Path) -> Iterator[RawClient]:
    client = RawClient(directory)
    yield client
    client.close()


def address_of(directory: Path) -> BusAddress:
    return BusAddress(f"local:{directory}")


def run_python(program: str, directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


# Owning


def test_directory_is_made_for_its_owner_alone(bus, directory):
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {path.name for path in directory.iterdir()} == {"bus.lock", "bus.sock"}


def test_bus_has_one_owner_at_a_time(bus, directory):
    other = LocalBus(str(directory))
    assert not other.try_own()
    assert own_local_bus(address_of(directory)) is None
    bus.close()
    assert other.try_own()
    other.close()


def test_owner_may_ask_again(bus):
    assert bus.try_own()


def test_closing_removes_the_socket_but_not_the_lock(bus, directory):
    bus.close()
    assert {path.name for path in directory.iterdir()} == {"bus.lock"}


def test_closing_disconnects_everybody_and_leaves_no_thread(directory):
    before = threading.active_count()
    bus = LocalBus(str(directory))
    bus.try_own()
    subscription = Subscription(address_of(directory))
    subscription.connect()
    follow(subscription, "news")

    bus.close()

    with pytest.raises(BusUnavailable):
        subscription.read(TIMEOUT)
    assert threading.active_count() == before
    subscription.close()


def test_closing_twice_is_closing(bus):
    bus.close()
    bus.close()


def test_bus_of_an_owner_that_was_killed_goes_to_the_next(directory):
    owner = run_python(
        """
        import sys
        from gunicorn_realtime.bus.local import LocalBus
        bus = LocalBus(sys.argv[1])
        print(bus.try_own(), flush=True)
        sys.stdin.read()
        """,
        directory,
    )
    with owner:
        assert owner.stdout.readline() == "True\n"
        bus = LocalBus(str(directory))
        assert not bus.try_own()
        owner.kill()
        owner.wait(TIMEOUT)
    assert (directory / "bus.sock").exists()

    assert bus.try_own()
    assert Publisher(address_of(directory)).publish("news", b"hello") == 0
    bus.close()


def test_link_in_the_directory_s_place_is_refused(directory, tmp_path):
    directory.symlink_to(tmp_path)
    with pytest.raises(BusUnavailable, match=f"directory {directory} is a symbolic link or no directory"):
        LocalBus(str(directory)).try_own()


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o777])
def test_directory_that_is_open_to_others_is_refused(directory, mode):
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(
        BusUnavailable, match=f"directory {directory} is open to others: {mode:#o}, not 0o700"
    ):
        LocalBus(str(directory)).try_own()
    with pytest.raises(BusUnavailable, match="is open to others"):
        Publisher(address_of(directory)).publish("news", b"hello")


@only_root
def test_directory_of_another_user_is_refused(directory):
    directory.mkdir(0o700)
    os.chown(directory, 65535, -1)
    directory.parent.chmod(0o755)
    program = """
        import os, sys
        from gunicorn_realtime.bus.address import BusAddress
        from gunicorn_realtime.bus.client import Publisher
        from gunicorn_realtime.bus.local import LocalBus
        bus = LocalBus(sys.argv[1])
        publisher = Publisher(BusAddress("local:" + sys.argv[1]))
        os.setuid(65534)
        for use in (bus.try_own, lambda: publisher.publish("news", b"")):
            try:
                use()
            except Exception as exc:
                print(f"{type(exc).__name__}: {exc}")
    """

    with run_python(program, directory) as process:
        output, _ = process.communicate(timeout=TIMEOUT)

    refusal = f"the local bus's directory {directory} belongs to uid 65535, not to 65534"
    assert output.splitlines() == [f"BusUnavailable: {refusal}"] * 2


def test_directory_that_cannot_be_made_is_told(tmp_path):
    with pytest.raises(
        BusUnavailable, match=r"the local bus cannot be served in .*: No such file or directory"
    ):
        LocalBus(str(tmp_path / "missing" / "bus")).try_own()


def test_path_too_long_for_a_socket_is_told(tmp_path):
    directory = tmp_path / ("x" * 120)
    with pytest.raises(BusUnavailable, match=r"has a path of \d+ bytes, more than the 107 of a Unix socket"):
        LocalBus(str(directory)).try_own()
    with pytest.raises(BusUnavailable, match="more than the 107"):
        Publisher(address_of(directory))


def test_directory_of_the_same_parts_is_the_same_and_short_enough():
    directory = local_directory("mysite.settings", "/srv/mysite", "")
    assert directory == local_directory("mysite.settings", "/srv/mysite", "")
    assert re.fullmatch("realtime-[0-9a-f]{16}", Path(directory).name)
    others = [
        ("mysite.settings", "/srv/mysite"),
        ("mysite.settings/srv/mysite", ""),
        ("mysite.settings", "", "/srv"),
    ]
    assert len({directory, *(local_directory(*parts) for parts in others)}) == 4


# Who may connect


@only_root
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who is at the other end")
def test_client_of_another_user_is_disconnected(bus, directory, caplog):
    directory.parent.chmod(0o755)
    directory.chmod(0o755)
    (directory / "bus.sock").chmod(0o777)
    program = """
        import os, socket, sys
        client = socket.socket(socket.AF_UNIX)
        os.setuid(65534)
        client.connect(sys.argv[1] + "/bus.sock")
        print(client.recv(100))
    """

    with run_python(program, directory) as process:
        output, _ = process.communicate(timeout=TIMEOUT)

    assert output == "b''\n"
    assert "the local bus refuses a client of uid 65534" in caplog.text


# Values


def test_values_are_bounded_in_size_and_number(bus):
    assert not bus.set_value(b"key", bytes(local.MAX_VALUE_SIZE))
    assert all(bus.set_value(b"%d" % number, b"old") for number in range(local.MAX_VALUES))

    assert not bus.set_value(b"one more", b"value")
    assert bus.set_value(b"0", b"new")
    assert bus.values[b"0"] == b"new"


def test_value_that_does_not_fit_is_refused_as_redis_does(raw_client):
    reply = raw_client.ask(b"SET key " + b"x" * local.MAX_VALUE_SIZE)
    assert reply == b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"


def test_values_end_with_their_owner(bus):
    bus.set_value(b"key", b"value")
    bus.close()
    assert bus.try_own()
    assert bus.values == {}


# Commands


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        (b"PING", b"+PONG\r\n"),
        (b"ping hello", b"$5\r\nhello\r\n"),
        (b"ECHO hello", b"$5\r\nhello\r\n"),
        (b"PUBLISH news hello", b":0\r\n"),
        (b"PUBSUB CHANNELS", b"*0\r\n"),
        (b"PUBSUB NUMSUB", b"*0\r\n"),
        (b"pubsub numsub news", b"*2\r\n$4\r\nnews\r\n:0\r\n"),
        (b"UNSUBSCRIBE", b"*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n"),
        (b"HELLO 3", b"-NOPROTO unsupported protocol version\r\n"),
        (b"CLIENT SETINFO LIB-NAME redis-py", b"+OK\r\n"),
        (b"CLIENT GETNAME", b"$-1\r\n"),
        (b"CLIENT SETNAME me\r\nCLIENT GETNAME", b"+OK\r\n$2\r\nme\r\n"),
        (b"SELECT 0", b"+OK\r\n"),
        (b"SELECT 1", b"-ERR DB index is out of range\r\n"),
        (b"COMMAND DOCS", b"*0\r\n"),
        (b"GET key", b"$-1\r\n"),
        (b"SET key value\r\nGET key", b"+OK\r\n$5\r\nvalue\r\n"),
        (b"SET key 1\r\nSET key 2\r\nGET key", b"+OK\r\n+OK\r\n$1\r\n2\r\n"),
        (b"lpush news", b"-ERR unknown command 'lpush', with args beginning with: 'news' \r\n"),
        (b"PUBSUB SHARDNUMSUB", b"-ERR unknown subcommand 'SHARDNUMSUB'. Try PUBSUB HELP.\r\n"),
        (b"PUBLISH news", b"-ERR wrong number of arguments for 'publish' command\r\n"),
        (b"PUBLISH news hello world", b"-ERR wrong number of arguments for 'publish' command\r\n"),
        (b"SUBSCRIBE", b"-ERR wrong number of arguments for 'subscribe' command\r\n"),
        (b"PUBSUB", b"-ERR wrong number of arguments for 'pubsub' command\r\n"),
        (b"RT.TICK 1", b"-ERR wrong number of arguments for 'rt.tick' command\r\n"),
        (b"RT.TICK 2 clock", b"-ERR wrong arguments for a script\r\n"),
        (b"RT.PUBLISH 1 clock e '' 0", b"-ERR wrong arguments for a script\r\n"),
        (b"RT.SNAPSHOT 2 clock log e '' 0 many 1", b"-ERR wrong arguments for a script\r\n"),
        (b"RT.SNAPSHOT 2 clock log e '' 0 10", b"-ERR wrong arguments for a script\r\n"),
        (b"CLIENT SETNAME", b"-ERR wrong number of arguments for 'client|setname' command\r\n"),
    ],
)
def test_command_is_answered_as_redis_answers_it(raw_client, command, reply):
    assert raw_client.ask(command) == reply


def test_quit_is_answered_and_ends_the_connection(raw_client):
    raw_client.send(b"PING\r\nQUIT\r\nPING\r\n")
    assert raw_client.read_to_end() == b"+PONG\r\n+OK\r\n"


def test_time_is_seconds_and_microseconds(raw_client):
    assert re.fullmatch(rb"\*2\r\n\$10\r\n\d{10}\r\n\$\d\r\n\d{1,6}\r\n", raw_client.ask(b"TIME"))


def test_info_tells_how_many_are_connected(raw_client):
    info = raw_client.ask(b"INFO")
    assert b"\r\nconnected_clients:1\r\n" in info
    assert f"process_id:{os.getpid()}\r\n".encode() in info


def test_pubsub_tells_the_channels_that_are_followed(raw_client, directory):
    subscription = Subscription(address_of(directory))
    subscription.connect()
    follow(subscription, "news", "sports")

    reply = raw_client.ask(b"PUBSUB NUMSUB news\r\nPUBSUB CHANNELS sp*\r\nPUBSUB CHANNELS")

    assert reply.startswith(b"*2\r\n$4\r\nnews\r\n:1\r\n*1\r\n$6\r\nsports\r\n*2\r\n")
    assert b"$4\r\nnews\r\n" in reply
    subscription.close()


def test_subscribed_client_can_do_little_else(raw_client):
    raw_client.send(b"SUBSCRIBE news\r\n")
    raw_client.read(len(b"*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n"))
    assert raw_client.ask(b"PING\r\nPING hi\r\nPUBLISH news hello\r\nUNSUBSCRIBE\r\nPUBLISH news hello") == (
        b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"
        b"*2\r\n$4\r\npong\r\n$2\r\nhi\r\n"
        b"-ERR Can't execute 'publish': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET"
        b" are allowed in this context\r\n"
        b"*3\r\n$11\r\nunsubscribe\r\n$4\r\nnews\r\n:0\r\n"
        b":0\r\n"
    )


def test_channel_without_followers_is_forgotten(bus, directory):
    subscription = Subscription(address_of(directory))
    subscription.connect()
    follow(subscription, "news", "sports")
    subscription.unsubscribe(["news"])
    subscription.read(TIMEOUT)
    assert set(bus.subscribers) == {b"sports"}
    subscription.close()
    wait_until(lambda: not bus.subscribers and not bus.clients)


def test_client_that_speaks_no_resp_is_told_and_disconnected(raw_client):
    raw_client.send(b"*1\r\nhello\r\n")
    raw_client._socket.shutdown(socket.SHUT_WR)
    assert raw_client.read_to_end() == b"-ERR Protocol error: expected '$', got 'h'\r\n"


def test_message_over_the_limit_is_refused_with_the_reason(directory):
    bus = LocalBus(str(directory), max_message_size=1000)
    bus.try_own()
    publisher = Publisher(address_of(directory))
    most = 1000 + MAX_HEADER_SIZE
    assert publisher.publish("news", bytes(most)) == 0
    for size in (most + 1, 4_000_000):
        with pytest.raises(BusUnavailable, match=f"an argument has {size} bytes, more than {most}"):
            publisher.publish("news", bytes(size))
    assert publisher.publish("news", b"hello") == 0
    publisher.close()
    bus.close()


def test_message_of_the_largest_size_may_have_an_envelope(bus, directory):
    publisher = Publisher(address_of(directory))
    data = bytes(MAX_MESSAGE_SIZE)
    for channel in (Channel("news"), Channel("news", 10, 60.0)):
        publisher.send([Outgoing(channel, data, event="größe" * 40, is_binary=True)])
    publisher.close()


# Delivery


def test_all_followers_see_the_same_order(bus, directory):
    followers = [Subscription(address_of(directory)) for _ in range(3)]
    for follower in followers:
        follower.connect()
        follow(follower, "news")

    def publish(name: bytes) -> None:
        publisher = Publisher(address_of(directory))
        for number in range(0, 300, 3):
            publisher.send([Outgoing(Channel("news"), b"%b %d" % (name, number + more)) for more in range(3)])
        publisher.close()

    threads = [threading.Thread(target=publish, args=(name,)) for name in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    seen = [[follower.read(TIMEOUT) for _ in range(900)] for follower in followers]
    for thread in threads:
        thread.join(TIMEOUT)
    for follower in followers:
        follower.close()

    assert seen[0] == seen[1] == seen[2]
    for name in (b"a ", b"b ", b"c "):
        of_one = [reply.payload for reply in seen[0] if reply.payload.startswith(name)]
        assert of_one == [b"%b%d" % (name, number) for number in range(300)]


def test_follower_that_does_not_read_is_dropped_and_holds_nobody_up(bus, directory, caplog):
    caplog.set_level(logging.WARNING)
    stuck = RawClient(directory)
    stuck.send(b"SUBSCRIBE news\r\n")
    stuck.read(len(b"*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n"))
    follower = Subscription(address_of(directory))
    follower.connect()
    follow(follower, "news")
    payload = bytes(50_000)
    allowed = threading.Semaphore(40)  # 2 MB ahead of the follower that reads
    backlogs = []

    def publish() -> None:
        publisher = Publisher(address_of(directory), TIMEOUT)
        for _ in range(100):
            assert allowed.acquire(timeout=TIMEOUT)
            publisher.publish("news", payload)
            with bus.turn:
                backlogs.extend(client._backlog_size for client in bus.clients)
        publisher.close()

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(400):  # 20 MB
        assert follower.read(TIMEOUT) == Received("news", payload)
        allowed.release()
    for thread in threads:
        thread.join(TIMEOUT)

    assert max(backlogs) <= local.MAX_BACKLOG
    assert "the local bus disconnects a client that is" in caplog.text
    assert len(stuck.read_to_end()) < 2_000_000  # what was in the socket
    wait_until(lambda: len(bus.clients) == 1)
    stuck.close()
    follower.close()


def test_bus_serves_from_a_process_that_gevent_has_patched(directory):
    owner = run_python(
        """
        from gevent import monkey
        monkey.patch_all()
        import sys
        import gevent
        from gevent.fileobject import FileObject
        from gunicorn_realtime.bus.address import BusAddress
        from gunicorn_realtime.bus.client import Publisher, Subscription
        from gunicorn_realtime.bus.local import own_local_bus
        from gunicorn_realtime.errors import BusUnavailable
        address = BusAddress("local:" + sys.argv[1])
        bus = own_local_bus(address)
        own = Subscription(address)
        own.connect()
        own.subscribe(["news"])
        print(own.read(), flush=True)
        print(own.read(), flush=True)
        gevent.spawn(own.close)
        try:
            own.read()
        except BusUnavailable as exc:
            print(exc, flush=True)
        FileObject(sys.stdin).readline()
        bus.close()
        print("closed", flush=True)
        """,
        directory,
    )
    with owner:
        assert owner.stdout.readline() == "Subscribed(channel='news')\n"
        publisher = Publisher(address_of(directory), TIMEOUT)
        subscription = Subscription(address_of(directory), TIMEOUT)
        subscription.connect()
        follow(subscription, "news")
        assert publisher.publish("news", b"hello") == 2
        assert subscription.read(TIMEOUT) == Received("news", b"hello")
        assert owner.stdout.readline() == "Received(channel='news', payload=b'hello')\n"
        assert owner.stdout.readline() == f"the subscription to local:{directory} is not connected\n"
        payload = bytes(1_000_000)
        publishing = threading.Thread(
            target=lambda: [publisher.publish("news", payload) for _ in range(6)], daemon=True
        )
        publishing.start()
        assert [subscription.read(TIMEOUT) for _ in range(6)] == [Received("news", payload)] * 6
        publishing.join(TIMEOUT)
        owner.stdin.write("\n")
        owner.stdin.flush()
        assert owner.stdout.readline() == "closed\n"
        with pytest.raises(BusUnavailable):
            subscription.read(TIMEOUT)
        subscription.close()
        publisher.close()
        assert owner.wait(TIMEOUT) == 0


# redis-cli


@pytest.mark.skipif(not shutil.which("redis-cli"), reason="redis-cli is not installed")
def test_redis_cli_publishes_and_subscribes(bus, directory):
    redis_cli = ["redis-cli", "-s", str(directory / "bus.sock")]
    with subprocess.Popen([*redis_cli, "subscribe", "lotofnews"], stdout=subprocess.PIPE) as subscriber:
        assert read_words(subscriber, 3) == [b"subscribe", b"lotofnews", b"1"]
        published = subprocess.run(
            [*redis_cli, "publish", "lotofnews", "hello"], capture_output=True, timeout=TIMEOUT, check=True
        )
        assert read_words(subscriber, 3) == [b"message", b"lotofnews", b"hello"]
        subscriber.terminate()
    assert (published.stdout, published.stderr) == (b"1\n", b"")


def read_words(process: subprocess.Popen[bytes], count: int) -> list[bytes]:
    words: list[bytes] = []
    while len(words) < count:
        data = os.read(process.stdout.fileno(), 1000)
        assert data, "redis-cli has ended"
        words += data.split()
    return words


def test_encoded_array_of_bulk_strings_is_what_the_bus_takes(raw_client):
    raw_client.send(encode_array(map(encode_bulk_string, (b"ECHO", b"a b"))))
    assert raw_client.read(9) == b"$3\r\na b\r\n"
