"""What a call of Django costs: messages that a handler echoes, beside requests for a view that does the same."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from statistics import median, quantiles
from typing import NamedTuple

from gunicorn_realtime.protocols import websocket
from tests.clients import connect, request_head

from .bars import Bar
from .runs import Bench, say
from .servers import DJANGO_APP, start_gunicorn

TEXT = b"x" * 100
MASK = bytes(4)  # what it masks stays as it is

HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}

MESSAGE = websocket.encode_frame(websocket.Opcode.TEXT, TEXT, mask=MASK)
REQUEST = request_head(f"/echo?text={TEXT.decode()}", {"Accept": "*/*"})

TIMEOUT = 60.0  # seconds


class Echoes(NamedTuple):
    per_second: float
    p50_ms: float
    p99_ms: float


def events(bench: Bench) -> Iterator[Bar]:
    """Echoes by a handler of a WebSocket, to those of a view, both in one worker with four threads for pages."""
    for connections in bench.sizes(1, 100):
        pages, messages = [], []
        for _ in range(bench.rounds):
            with ExitStack() as stack:
                server, _ = start_gunicorn(stack, DJANGO_APP)
                pages.append(_measure(server.port, connections, bench.seconds, REQUEST, _open_connection))
                messages.append(_measure(server.port, connections, bench.seconds, MESSAGE, _open_websocket))
            say(f"events, {connections} connections: pages {pages[-1]}, messages {messages[-1]}")

        def bar(figure: str, values: list[float], connections: int = connections) -> Bar:
            return Bar("events", connections, figure, values)

        pairs = list(zip(messages, pages, strict=True))
        yield bar("echoes/s, of messages", [echoes.per_second for echoes in messages])
        yield bar("echoes/s, messages to pages", [ours.per_second / page.per_second for ours, page in pairs])
        yield bar("p50 of messages, ms", [echoes.p50_ms for echoes in messages])
        yield bar("p99 of messages, ms", [echoes.p99_ms for echoes in messages])
        yield bar("p50 of pages, ms", [echoes.p50_ms for echoes in pages])
        yield bar("p99 of pages, ms", [echoes.p99_ms for echoes in pages])


def _open_connection(port: int) -> socket.socket:
    return connect(port, TIMEOUT)


def _open_websocket(port: int) -> socket.socket:
    sock = connect(port, TIMEOUT)
    sock.sendall(request_head("/echo/websocket", HANDSHAKE))
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(4096)
    assert head.startswith(b"HTTP/1.1 101 "), head
    return sock


def _measure(
    port: int, connections: int, seconds: float, question: bytes, open_socket: Callable[[int], socket.socket]
) -> Echoes:
    """Let each connection ask again as soon as it has its answer, which ends with what was asked."""
    times: list[float] = []
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(connections):
            sock = stack.enter_context(open_socket(port))
            sock.sendall(question)
            selector.register(sock, selectors.EVENT_READ, [time.perf_counter(), b""])
        start = time.perf_counter()
        while (now := time.perf_counter()) < start + seconds:
            for key, _ in selector.select(TIMEOUT):
                sock, state = key.fileobj, key.data
                assert isinstance(sock, socket.socket)
                data = sock.recv(4096)
                assert data, "the server has closed a connection"
                state[1] += data
                if state[1].endswith(TEXT):
                    answered = time.perf_counter()
                    times.append(answered - state[0])
                    state[:] = [answered, b""]
                    sock.sendall(question)
    milliseconds = [1000 * passed for passed in times]
    return Echoes(len(times) / (now - start), median(milliseconds), quantiles(milliseconds, n=100)[-1])
