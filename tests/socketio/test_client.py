"""The JavaScript clients' driver must not lie either: it is tried on the official server."""

from __future__ import annotations

import subprocess

import pytest

from tests.socketio.client import HERE, Node

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def urls(socketio_packages):
    command = ["node", str(HERE / "peer.js")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield [f"http://127.0.0.1:{port}" for port in process.stdout.readline().split()]
        process.stdin.close()


@pytest.fixture
def url(urls):
    return urls[0]


@pytest.fixture
def recovering_url(urls):
    return urls[1]


WAYS = [
    pytest.param(version, transports, id=f"client-{version}-{'-then-'.join(transports)}")
    for version in (4, 2)
    for transports in (["polling"], ["websocket"], ["polling", "websocket"])
]


@pytest.mark.parametrize(("version", "transports"), WAYS)
def test_client_exchanges_events_text_bytes_and_acknowledgements(node, url, version, transports):
    client = node.connect(
        url, version=version, transports=transports, query={"color": "red"}, answers={"ask": [3, b"\0\xff"]}
    ).wait_until_connected()
    client.wait_for_transport(transports[-1])

    client.emit("echo", "Łódź", {"data": b"\0\x01\xff", "none": None})
    client.emit("ask me")

    assert client.wait_for("echo") == ["Łódź", {"data": b"\0\x01\xff", "none": None}]
    assert client.wait_for("answered") == [3, b"\0\xff"]
    assert client.call("echo", 1, b"two", [3.5]) == [1, b"two", [3.5]]
    assert [name for name, _ in client.received] == ["welcome", "echo", "ask", "answered"]
    assert client.received[0][1][0]["query"] == "red"
    assert client.received[2][1] == ["how many?"]


def test_headers_are_sent(node, url):
    client = node.connect(url, extraHeaders={"x-color": "green"})

    assert client.call("header", "x-color") == ["green"]


def test_namespace_gets_the_auth_and_refuses_with_a_message(node, url):
    member = node.connect(url, namespace="/members", auth={"token": "right"})
    stranger = node.connect(url, namespace="/members", auth={"token": "wrong"})

    assert member.wait_for("welcome") == [{"auth": {"token": "right"}, "query": None}]
    assert stranger.wait_for_connect_error() == {"message": "not a member", "data": {"code": 403}}
    assert not stranger.connected


def test_version_2_tells_of_a_refusal_too(node, url):
    stranger = node.connect(url, namespace="/members", version=2)

    assert stranger.wait_for_connect_error() == {"message": "", "data": {"code": 403}}


@pytest.mark.parametrize("transport", ["polling", "websocket"])
def test_dropped_client_comes_back_and_is_recovered(node, recovering_url, transport):
    client = node.connect(recovering_url, transports=[transport]).wait_until_connected()
    client.wait_for("welcome")  # with its offset, which a recovery needs
    first_id = client.id

    client.drop()

    assert (
        client.wait_for_disconnect() == {"polling": "forced close", "websocket": "transport close"}[transport]
    )
    client.wait_for_connects(2)
    assert (client.recovered, client.id) == (True, first_id)


def test_client_that_leaves_or_is_sent_away_stays_away_until_it_reconnects(node, url):
    client = node.connect(url).wait_until_connected()
    first_id = client.id

    client.disconnect()
    assert client.wait_for_disconnect() == "io client disconnect"
    client.reconnect()
    client.wait_for_connects(2)
    client.emit("kick me")

    assert client.wait_for_disconnect() == "io server disconnect"
    assert (client.recovered, client.id != first_id, client.connected) == (False, True, False)


def test_wait_in_vain_tells_what_came_instead(node, url):
    client = node.connect(url)
    client.wait_for("welcome")

    with pytest.raises(AssertionError, match=r"waited 0\.01 s in vain: event 'news'; connected True by"):
        client.wait_for("news", timeout=0.01)


def test_swarm_tells_who_lost_doubled_or_mixed_up_what(node, url):
    swarm = node.connect_many(20, url, transports=["websocket"]).wait_until_connected()

    swarm.emit("count", [0, 1, 3, 2])
    swarm.wait_for_all("number", 4)

    assert swarm.problems("number", [0, 1, 3, 2]) == []
    assert swarm.problems("number", range(4))[19] == "socket 19: out of order from 3 on"
    assert swarm.problems("number", [0, 1, 2, 4, 5])[0] == "socket 0: lost 2 [4,5], doubled 0, foreign 1 [3]"
    swarm.emit("count", [2])
    swarm.wait_for_all("number", 5)
    assert swarm.problems("number", range(4))[0] == "socket 0: lost 0 [], doubled 1, foreign 0 []"


def test_swarm_comes_back_when_it_is_dropped(node, url):
    swarm = node.connect_many(20, url, transports=["websocket"]).wait_until_connected()

    swarm.drop()

    swarm.wait_for_connects(40)
    swarm.wait_until_connected()
    assert swarm.disconnects == {"transport close": 20}
    swarm.disconnect()
    swarm.wait_until_disconnected()


def test_swarm_goes_on_when_sockets_are_refused(node, url):
    swarm = node.connect_many(20, url, namespace="/members", inflight=5)

    swarm.wait_for_connect_errors(20)

    assert (swarm.connected, swarm.connect_errors) == (0, {"not a member": 20})


def test_failure_inside_node_is_seen(socketio_packages):
    node = Node()

    node.send(command="emit", socket=7, args=["news"])  # there is no such socket

    with pytest.raises(
        AssertionError, match=r"(?s)exit code 1: .*TypeError: Cannot read properties of undefined"
    ):
        node.close()
