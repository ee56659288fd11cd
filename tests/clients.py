"""Clients of the servers under test: one request, one event stream, a swarm of event streams."""

from __future__ import annotations

import codecs
import http.client
import io
import re
import resource
import selectors
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from types import TracebackType

from tests.waiting import wait_until

Address = int | str
"""A port of 127.0.0.1, or the path of a Unix socket."""


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: Message
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


def http_get(
    address: Address,
    path: str = "/",
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "GET",
    body: bytes | None = None,
    timeout: float = 30,
) -> Response:
    """Make one request on a connection of its own and read the whole answer."""
    connection = http.client.HTTPConnection("127.0.0.1", timeout=timeout)
    connection.sock = connect(address, timeout)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        return Response(response.status, response.headers, response.read())
    finally:
        connection.close()


def connect(
    address: Address, timeout: float = 30, *, source: str | None = None, receive_buffer: int | None = None
) -> socket.socket:
    """Connect to a server, if wanted from `source` (127.0.0.x) or with a receive buffer of so many bytes."""
    sock, target = _socket_for(address, source, receive_buffer)
    sock.settimeout(timeout)
    try:
        sock.connect(target)
    except BaseException:
        sock.close()
        raise
    return sock


def _socket_for(
    address: Address, source: str | None, receive_buffer: int | None
) -> tuple[socket.socket, tuple[str, int] | str]:
    unix = isinstance(address, str)
    sock = socket.socket(socket.AF_UNIX if unix else socket.AF_INET, socket.SOCK_STREAM)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    if source is not None:
        sock.bind((source, 0))
    return sock, address if isinstance(address, str) else ("127.0.0.1", address)


def request_head(path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> bytes:
    """A request without a body, as EventSource sends it."""
    fields = {
        "Host": "127.0.0.1",
        "Accept": "text/event-stream",
        "Cache-Control": "no-cache",
        **(headers or {}),
    }
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode()


class ResponseReader:
    """One HTTP/1 response, fed as it arrives: the head, then the body without its framing (RFC 9112)."""

    def __init__(self, method: str = "GET") -> None:
        self.status: int | None = None
        self.headers = Message()
        self.complete = False  # by its own framing: a stream that ends without it was cut
        self._method = method
        self._buffer = bytearray()
        self._chunked = False
        self._in_trailer = False
        self._left: int | None = None  # bytes of the body or of the chunk; None: until the connection closes

    def feed(self, data: bytes) -> bytes:
        """Return what the bytes bring of the body."""
        self._buffer += data
        if self.status is None and not self._read_head():
            return b""
        if self._chunked:
            return self._read_chunks()
        return self._read_plain()

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        status_line, _, fields = bytes(self._buffer[: end + 4]).partition(b"\r\n")
        del self._buffer[: end + 4]
        self.headers = http.client.parse_headers(io.BytesIO(fields))
        self.status = int(status_line.split()[1])
        self._chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"
        if self._method == "HEAD" or self.status in (204, 304):
            self._chunked, self._left = False, 0
        elif self._chunked:
            self._left = 0
        elif "Content-Length" in self.headers:
            self._left = int(self.headers["Content-Length"])
        return True

    def _read_plain(self) -> bytes:
        body = bytes(self._buffer if self._left is None else self._buffer[: self._left])
        del self._buffer[: len(body)]
        if self._left is not None:
            self._left -= len(body)
            self.complete = self._left == 0
        return body

    def _read_chunks(self) -> bytes:
        body = bytearray()
        while not self.complete:
            if self._left:
                part = self._buffer[: self._left]
                if not part:
                    break
                body += part
                del self._buffer[: len(part)]
                self._left -= len(part)
                continue
            end = self._buffer.find(b"\r\n")
            if end < 0:
                break
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 2]
            if self._in_trailer:
                self.complete = not line
            elif line:  # an empty one ends the chunk before
                self._left = int(line.partition(b";")[0], 16)
                self._in_trailer = self._left == 0
        return bytes(body)


@dataclass(frozen=True, slots=True)
class Event:
    """What an EventSource would dispatch; `retry` only if it came in the same block, in milliseconds."""

    event: str
    data: str
    id: str = ""
    retry: int | None = None


class SSEParser:
    """The event stream of WHATWG HTML, sections 9.2.5 and 9.2.6."""

    def __init__(self) -> None:
        self.retry: int | None = None  # ms, the last one received
        self.last_event_id = ""
        self.comments: list[str] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._at_start = True
        self._after_cr = False  # a line feed that follows belongs to the same line end
        self._reset_block()
        self._id_buffer = ""

    def _reset_block(self) -> None:
        self._event = ""
        self._data: list[str] = []
        self._block_retry: int | None = None

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that these bytes complete."""
        text = self._decoder.decode(data)
        if not text:
            return []
        if self._at_start:
            self._at_start = False
            text = text.removeprefix("\ufeff")
        if self._after_cr and text:
            self._after_cr = False
            text = text.removeprefix("\n")
        self._after_cr = text.endswith("\r")
        *lines, self._text = re.split(r"\r\n|\r|\n", self._text + text)
        events = []
        for line in lines:
            if line:
                self._field(line)
            elif (event := self._dispatch()) is not None:
                events.append(event)
        return events

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name:
            self.comments.append(value)
        elif name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id_buffer = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry = self._block_retry = int(value)

    def _dispatch(self) -> Event | None:
        self.last_event_id = self._id_buffer
        event = None
        if self._data:
            event = Event(
                self._event or "message", "\n".join(self._data), self.last_event_id, self._block_retry
            )
        self._reset_block()
        return event


class StreamClosed(EOFError):
    """The stream ended while an event was waited for."""


class SSEClient:
    """One event stream on a blocking socket. It reads only while a method waits, so it can be slow at will.

    Args:
        address: A port, or the path of a Unix socket.
        source: The address to connect from, 127.0.0.x.
        receive_buffer: Bytes that the kernel may hold for it.
        timeout: Seconds to wait for the response's head.
    """

    def __init__(
        self,
        address: Address,
        path: str = "/",
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        source: str | None = None,
        receive_buffer: int | None = None,
        timeout: float = 30,
    ) -> None:
        self.raw = bytearray()  # everything received: head, framing and all
        self.body = bytearray()
        self.closed = False  # by the server
        self.reset = False  # ... and not with an orderly FIN
        self._response = ResponseReader(method)
        self._parser = SSEParser()
        self._events: deque[Event] = deque()
        self.sock = connect(address, timeout, source=source, receive_buffer=receive_buffer)
        try:
            self.sock.sendall(request_head(path, headers, method))
            self.read_until(lambda: self._response.status is not None, timeout)
        except BaseException:
            self.sock.close()
            raise

    @property
    def status(self) -> int:
        assert self._response.status is not None
        return self._response.status

    @property
    def headers(self) -> Message:
        return self._response.headers

    @property
    def complete(self) -> bool:
        """The body ended as its framing says: with the last chunk, or at its length."""
        return self._response.complete

    @property
    def retry(self) -> int | None:
        return self._parser.retry

    @property
    def last_event_id(self) -> str:
        return self._parser.last_event_id

    @property
    def comments(self) -> list[str]:
        return self._parser.comments

    def next_event(self, timeout: float = 30) -> Event:
        """Raise `StreamClosed` at the end of the stream, `TimeoutError` if nothing comes."""
        self.read_until(lambda: bool(self._events), timeout)
        return self._events.popleft()

    def next_events(self, count: int, timeout: float = 30) -> list[Event]:
        self.read_until(lambda: len(self._events) >= count, timeout)
        return [self._events.popleft() for _ in range(count)]

    def wait_closed(self, timeout: float = 30) -> None:
        """Read to the end of the stream, or of the response; events on the way are kept for `next_event`."""
        deadline = time.monotonic() + timeout
        while not (self.closed or self.complete):
            self._read(deadline)

    def read_until(self, condition: Callable[[], object], timeout: float = 30) -> None:
        """Read until `condition` is true, as `lambda: client.comments`."""
        deadline = time.monotonic() + timeout
        while not condition():
            if self.closed or self.complete:
                raise StreamClosed(f"the stream ended after {bytes(self.raw[-300:])!r}")
            self._read(deadline)

    def _read(self, deadline: float) -> None:
        self.sock.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            data = self.sock.recv(65536)
        except TimeoutError:
            raise TimeoutError(f"nothing more came after {bytes(self.raw[-300:])!r}") from None
        except ConnectionResetError:
            data, self.reset = b"", True
        self.closed = not data
        self.raw += data
        body = self._response.feed(data)
        self.body += body
        self._events += self._parser.feed(body)

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> SSEClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Disconnect:
    time: float
    reason: str  # "complete", "closed", or the error


@dataclass(slots=True, eq=False)
class SwarmClient:
    """What one connection of a swarm has seen; times are of `time.monotonic`."""

    number: int
    data: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # of each item of `data`
    connects: list[float] = field(default_factory=list)  # responses with status 200
    refusals: list[int] = field(default_factory=list)  # other statuses
    disconnects: list[Disconnect] = field(default_factory=list)
    sock: socket.socket | None = None
    last_event_id: str = ""
    response: ResponseReader = field(default_factory=ResponseReader)
    parser: SSEParser = field(default_factory=SSEParser)

    @property
    def streaming(self) -> bool:
        return self.sock is not None and self.response.status == 200


class Swarm:
    """Many event streams in one thread.

    As a context manager it has had an answer for each client when its block begins.

    Args:
        path: The path, or a function from the client's number (0 ...) to its path.
        reconnect_after: Seconds after which who was cut comes back, with its Last-Event-ID; None: it does not.
        may_be_refused: It is no failure if an answer is not 200, or none comes.
        inflight: Connections that wait for their response's head at a time.
    """

    def __init__(
        self,
        address: Address,
        path: str | Callable[[int], str],
        count: int,
        *,
        headers: Mapping[str, str] | None = None,
        source: str | None = None,
        reconnect_after: float | None = None,
        may_be_refused: bool = False,
        inflight: int = 128,
        connect_timeout: float = 90,
    ) -> None:
        self.clients = [SwarmClient(number) for number in range(count)]
        self._address = address
        self._path = path if callable(path) else lambda _: path
        self._headers = headers
        self._source = source
        self._reconnect_after = reconnect_after
        self._may_be_refused = may_be_refused
        self._inflight = inflight
        self._connect_timeout = connect_timeout
        self._to_open: deque[tuple[float, SwarmClient]] = deque((0, client) for client in self.clients)
        self._opening: set[SwarmClient] = set()
        self._selector = selectors.DefaultSelector()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="swarm", daemon=True)

    def __enter__(self) -> Swarm:
        allow_open_files(len(self.clients) + 200)
        self._thread.start()
        try:
            self.wait_until(
                lambda: all(c.connects or c.disconnects for c in self.clients), self._connect_timeout
            )
            assert self._may_be_refused or all(client.connects for client in self.clients), self.summary()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()

    @property
    def streaming(self) -> int:
        """Connections that are open and were answered with 200."""
        return sum(client.streaming for client in self.clients)

    @property
    def disconnects(self) -> list[Disconnect]:
        return [disconnect for client in self.clients for disconnect in client.disconnects]

    def wait_streaming(self, count: int | None = None, timeout: float = 60) -> None:
        """Wait until so many clients (all) are connected."""
        wanted = len(self.clients) if count is None else count
        self.wait_until(lambda: self.streaming >= wanted, timeout)

    def wait_all(self, count: int, timeout: float = 60) -> None:
        """Wait until every client has had so many events."""
        self.wait_until(lambda: all(len(client.data) >= count for client in self.clients), timeout)

    def wait_disconnected(self, timeout: float = 60) -> None:
        """Wait until no client is connected any more."""
        self.wait_until(lambda: self.streaming == 0, timeout)

    def wait_until(self, condition: Callable[[], bool], timeout: float = 60) -> None:
        wait_until(lambda: condition() or not self._thread.is_alive(), timeout, self.summary)
        assert condition(), f"the swarm's thread has ended: {self.summary()}"

    def differences(self, expected: Sequence[str]) -> list[str]:
        """Say of each client that has not had exactly this, in this order, what is wrong; [] is a clean run."""
        return [
            f"client {client.number}: {_difference(client.data, expected)}"
            for client in self.clients
            if client.data != list(expected)
        ]

    def summary(self) -> str:
        events = [len(client.data) for client in self.clients]
        reasons = Counter(disconnect.reason for disconnect in self.disconnects)
        refusals = Counter(status for client in self.clients for status in client.refusals)
        return (
            f"{self.streaming} of {len(self.clients)} connected, {min(events)} to {max(events)} events each, "
            f"disconnects {dict(reasons)}, refusals {dict(refusals)}"
        )

    def _run(self) -> None:
        with self._selector:
            try:
                while not self._stopping.is_set():
                    self._open_due()
                    for key, _ in self._selector.select(0.02):
                        client: SwarmClient = key.data
                        if key.events & selectors.EVENT_WRITE:
                            self._connected(client)
                        else:
                            self._readable(client)
            finally:
                for client in self.clients:
                    if client.sock is not None:
                        client.sock.close()

    def _open_due(self) -> None:
        now = time.monotonic()
        while self._to_open and self._to_open[0][0] <= now and len(self._opening) < self._inflight:
            _, client = self._to_open.popleft()
            client.response, client.parser = ResponseReader(), SSEParser()
            client.sock, target = _socket_for(self._address, self._source, None)
            client.sock.setblocking(False)
            self._opening.add(client)
            self._selector.register(client.sock, selectors.EVENT_WRITE, client)
            try:
                client.sock.connect(target)
            except BlockingIOError:
                pass
            except OSError as exc:
                self._disconnected(client, str(exc))

    def _connected(self, client: SwarmClient) -> None:
        assert client.sock is not None
        headers = dict(self._headers or {})
        if client.last_event_id:
            headers["Last-Event-ID"] = client.last_event_id
        try:
            client.sock.send(request_head(self._path(client.number), headers))
        except OSError as exc:
            self._disconnected(client, str(exc))
        else:
            self._selector.modify(client.sock, selectors.EVENT_READ, client)

    def _readable(self, client: SwarmClient) -> None:
        assert client.sock is not None
        try:
            data = client.sock.recv(262144)
        except BlockingIOError:
            return
        except OSError as exc:
            self._disconnected(client, str(exc))
            return
        body = client.response.feed(data)
        if client in self._opening and client.response.status is not None:
            self._opening.discard(client)
            if client.response.status == 200:
                client.connects.append(time.monotonic())
            else:
                client.refusals.append(client.response.status)
        if client.response.status == 200:
            for event in client.parser.feed(body):
                client.times.append(time.monotonic())
                client.data.append(event.data)
            client.last_event_id = client.parser.last_event_id or client.last_event_id
        if client.response.complete:
            self._disconnected(client, "complete")
        elif not data:
            self._disconnected(client, "closed")

    def _disconnected(self, client: SwarmClient, reason: str) -> None:
        assert client.sock is not None
        self._opening.discard(client)
        self._selector.unregister(client.sock)
        client.sock.close()
        client.sock = None
        client.disconnects.append(Disconnect(time.monotonic(), reason))
        if self._reconnect_after is not None:
            self._to_open.append((time.monotonic() + self._reconnect_after, client))


def allow_open_files(count: int) -> None:
    """Raise this process's soft limit of open files if it is below `count`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


def _difference(seen: Sequence[str], expected: Sequence[str]) -> str:
    had, wanted = Counter(seen), Counter(expected)
    lost, extra = wanted - had, had - wanted
    if lost or extra:
        return f"lost {_sample(lost)}, doubled or foreign {_sample(extra)}"
    first = next(index for index, pair in enumerate(zip(seen, expected, strict=True)) if pair[0] != pair[1])
    return f"out of order from {seen[first]!r} on"


def _sample(counter: Counter[str]) -> str:
    if not counter:
        return "0"
    return f"{counter.total()} ({', '.join(repr(data) for data in list(counter)[:3])} ...)"
