"""The gunicorn worker: ``gunicorn -k gunicorn_realtime.Worker``.

A gthread worker that gives long-lived connections away. All contact with gunicorn's internals is
in this module, which nothing else in the project knows. Three things differ from gthread:

- Heads are waited for on the poller: a thread sees a request when its head is complete.
- An application can offload its connection: `environ["gunicorn_realtime.offload"]`.
- Connections come back from a hub, to be served like any kept-alive one.

What happens to offloaded connections comes back as event calls, on threads of their own.
"""

from __future__ import annotations

import errno
import io
import ipaddress
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from gunicorn.http.wsgi import Response, base_environ
from gunicorn.util import http_date
from gunicorn.workers.gthread import TConn, ThreadWorker

from .admission import Admission, engine_asked_for, may_refuse
from .arbiter import arbiter_lines, drain_timeout
from .errors import OffloadRefused, ProtocolError, TooLarge
from .event_threads import EventThreads
from .plumbing.events import ENVIRON_KEY as EVENT_KEY
from .plumbing.events import Answer, Event, Outcome, encode_environ
from .plumbing.frames import Frame
from .plumbing.handover import HandBack, Handover
from .plumbing.lines import receive
from .plumbing.offload import ENVIRON_KEY, Offload
from .plumbing.sessions import direct_session, hub_of, serve_session
from .polled import HEAD_END, STOP_LINGER, Closing, Conn, Heads
from .pool import Pool
from .refusal import Refusal, refusal
from .settings import Settings

# Unsent bytes that the kernel takes for one connection. More would hide from the hub how far
# behind a client is, and 100 clients that read nothing would hold 400 MB.
TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
UNSENT_SIZE = 64 * 1024  # bytes


class BackListener:
    """Looks like a listening socket; what it accepts are connections that a hub hands back."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def fileno(self) -> int:
        return self.sock.fileno()

    def setblocking(self, flag: bool) -> None:
        self.sock.setblocking(flag)

    def getsockname(self) -> str:
        return "hub"

    def close(self) -> None:
        self.sock.close()


class Gone:
    """Stands in for a socket that was handed over: nobody may touch the hub's connection."""

    def fileno(self) -> int:
        return -1

    def setblocking(self, flag: bool) -> None:
        pass

    def settimeout(self, timeout: float | None) -> None:
        pass

    def shutdown(self, how: int) -> None:
        pass

    def close(self) -> None:
        pass

    def recv(self, size: int) -> bytes:
        return b""

    def sendall(self, data: bytes) -> None:
        raise OSError(errno.EPIPE, "the connection was handed over to a hub")

    send = sendall


class Threads(ThreadPoolExecutor):
    """gunicorn's pool, which takes nothing more once the worker stops.

    Args:
        stopping: Called before that.
    """

    def __init__(self, count: int, stopping: Callable[[], None]) -> None:
        super().__init__(count)
        self._stopping = stopping

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        self._stopping()
        super().shutdown(*args, **kwargs)


class Worker(ThreadWorker):
    """A gthread worker whose application can offload its connections to a hub."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = Settings.from_environ(os.environ)
        self.lines = arbiter_lines(self.cfg, self.settings)
        # A thread is left for the site's pages, and so are connections.
        self.admission = Admission(
            super().enqueue_req, max(1, self.cfg.threads - 1), self.cfg.worker_connections // 2
        )
        self.current = threading.local()
        self.stopping_since: float | None = None
        self.proxies = _networks(self.cfg.forwarded_allow_ips)
        # What only the stock code can read: TLS, HTTP/2 without it, uwsgi's own protocol.
        self.is_plain_http = not (
            self.cfg.is_ssl
            or getattr(self.cfg, "protocol", "http") == "uwsgi"
            or getattr(self.cfg, "http2_cleartext", "off") in ("prior-knowledge", "both")
        )

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        super().check_config(cfg, log)
        if cfg.is_ssl:
            log.warning(
                "gunicorn terminates TLS itself: its connections cannot be offloaded (501). "
                "Put a proxy in front that does."
            )

    def init_process(self) -> None:
        self.lines.become_worker()
        back: Any = BackListener(self.lines.back_worker)
        self.sockets = [*self.sockets, back]
        super().init_process()

    def get_thread_pool(self) -> Threads:
        return Threads(self.cfg.threads, self._take_the_last)

    def _take_the_last(self) -> None:
        # Up to 23.0 a worker that has had its max_requests would drop those who wait.
        self.heads.read_last()
        self.admission.open_wide()

    def load_wsgi(self) -> None:
        super().load_wsgi()
        settings = self.settings
        self.heads = Heads(
            self.poller, settings.head_size, settings.head_timeout, self._serve, self._drop_connection
        )
        self.closing = Closing(self.poller)
        self.event_threads = EventThreads(
            self.lines.events_worker,
            settings.event_threads,
            partial(self._run_event, self.wsgi),
            lambda: not self.alive,
            self.log,
        )
        self.wsgi = partial(self._call_application, self.wsgi)
        Pool(self.lines, self.log, self._hub_options(), self._is_orphan).start()

    def run(self) -> None:
        self.event_threads.start()
        super().run()
        self.alive = False  # also where the arbiter has gone
        deadline = self._stopping_since() + self.cfg.graceful_timeout
        while not self.event_threads.join(timeout=1.0) and time.monotonic() < deadline:
            self.notify()

    def _stopping_since(self) -> float:
        """Return when the worker began to stop, as far as it was seen."""
        if self.stopping_since is None:
            self.stopping_since = time.monotonic()
        return self.stopping_since

    def _hub_options(self) -> dict[str, Any]:
        return {
            "errorlog": os.path.abspath(self.cfg.errorlog) if self.cfg.errorlog != "-" else "-",
            "loglevel": self.cfg.loglevel,
            "drain_timeout": drain_timeout(self.cfg),
        }

    def _is_orphan(self) -> bool:
        return bool(self.ppid != os.getppid())

    # Heads are waited for on the poller.

    def accept(self, *args: Any) -> None:
        listener = args[-1]  # up to 23.0 the server's name comes before it
        if isinstance(listener, BackListener):
            self._accept_back(listener)
            return
        if not self.is_plain_http:
            super().accept(*args)
            return
        try:
            sock, client = listener.accept()
        except OSError as exc:
            if exc.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return
        server = args[0] if len(args) == 2 else listener.getsockname()
        self._adopt(sock, client, server, b"", req_count=0)

    def _accept_back(self, listener: BackListener) -> None:
        try:
            data, fds = receive(listener.sock)
        except BlockingIOError:
            return  # another worker was first
        except OffloadRefused as exc:
            self.log.error("%s", exc)
            return
        sock = socket.socket(fileno=fds[0])
        try:
            back = HandBack.from_frame(Frame.decode(data))
        except ProtocolError as exc:
            self.log.error("A connection came back that cannot be read: %s", exc)
            sock.close()
            return
        # Beyond the first request: a PROXY line in what follows would be the client's own.
        self._adopt(sock, back.client, back.server, back.rest, req_count=1)

    def _adopt(self, sock: socket.socket, client: Any, server: Any, data: bytes, *, req_count: int) -> None:
        conn: Conn = TConn(self.cfg, sock, client, server)
        conn.close = partial(self._close, conn)
        self.nr_conns += 1
        conn.init()
        conn.parser.req_count = req_count
        _unreader(conn).unread(data)
        self.enqueue_req(conn)

    def enqueue_req(self, conn: Conn) -> None:
        """Give the connection to a thread as soon as the head of its request is complete."""
        if not self.is_plain_http:
            super().enqueue_req(conn)
            return
        self.heads.add(conn, _take_bytes(conn))

    def _serve(self, conn: Conn, data: bytes) -> None:
        """Give a connection to a thread whose request's head has come, or let it wait for its turn."""
        _unreader(conn).unread(data)
        conn.sock.setblocking(True)
        conn.data_ready = True
        engine = engine_asked_for(data)
        if engine is None:
            super().enqueue_req(conn)
        elif self.admission.is_full() and may_refuse(engine, data):
            self._drop_connection(conn, refusal(engine, {}).encode(b"HTTP/1.1"))
        else:
            self.admission.enter(conn)

    def _drop_connection(self, conn: Conn, answer: bytes) -> None:
        try:
            conn.sock.send(answer)
        except OSError:
            pass
        self.nr_conns -= 1
        conn.close()

    def _close(self, conn: Conn, graceful: bool = True) -> None:
        if graceful and self.alive:
            self.closing.close(conn.sock)
        else:
            conn.sock.close()

    def murder_keepalived(self, *args: Any, **kwargs: Any) -> None:
        super().murder_keepalived(*args, **kwargs)
        self.closing.expire(is_stopping=not self.alive)
        self.heads.expire(is_stopping=not self.alive)

    def wait_for_and_dispatch_events(self, timeout: float | None) -> None:
        # A stopping worker of gunicorn 24 to 26 would sleep until graceful_timeout here, though
        # the connections it waits for time out sooner.
        if not self.alive:
            self._stopping_since()
        longest = STOP_LINGER / 2
        super().wait_for_and_dispatch_events(longest if timeout is None else min(timeout, longest))

    # An application can offload its connection.

    def handle(self, conn: Conn) -> Any:
        self.current.conn = conn
        try:
            while True:
                result: Any = super().handle(conn)
                # Up to 26 a request that was read together with the one before it is left lying.
                keep_alive = result[0] if isinstance(result, tuple) else result
                if keep_alive is not True or not self.is_plain_http or getattr(conn, "is_http2", False):
                    return result
                if HEAD_END not in _unreader(conn).buf.getvalue():
                    return result
        finally:
            self.current.conn = None
            self.admission.leave(conn)

    def _call_application(self, application: Any, environ: dict[str, Any], start_response: Any) -> Any:
        response = start_response.__self__
        received = dict(environ)  # as we made it: whatever the application does to its own
        environ[ENVIRON_KEY] = partial(self._offload, self.current.conn, response, received)
        if direct_session(environ) is not None:
            return serve_session(environ, start_response)
        return application(environ, start_response)

    def _offload(
        self, conn: Conn, response: Response, environ: dict[str, Any], offload: Offload
    ) -> Iterable[bytes]:
        """`environ["gunicorn_realtime.offload"]`: return the rest of the response's body.

        It is empty when the connection is a hub's now, else it is the body of a refusal.
        """
        if response.status is None or response.headers_sent:
            raise RuntimeError("offload after start_response() and before the first byte of the body")
        if not self.is_plain_http or getattr(conn, "is_http2", False):
            return _answer_instead(response, NOT_IMPLEMENTED)
        handover = Handover(
            offload,
            conn.client,
            conn.server,
            counted=not self._is_proxy(conn.client),
            keep_alive=not response.should_close()
            # The hub reads the body only where that is a session's.
            and (offload.session is not None or not _declares_body(response.req)),
            head=_encode_head(response),
            rest=_take_bytes(conn),
            environ=encode_environ(environ) if offload.events is not None else "",
        )
        _prepare_socket(conn.sock, self.settings.write_timeout)
        try:
            hub = None if offload.session is None else hub_of(offload.session)
            self.lines.send(handover.frame(), [conn.sock.fileno()], hub)
        except (OffloadRefused, TooLarge) as exc:
            self.log.warning("A connection was refused: %s", exc)
            _unreader(conn).unread(handover.rest)
            return _answer_instead(response, refusal(offload.engine, offload.options))
        _give_up(conn, response)
        return ()

    def _run_event(self, application: Any, environ: str, event: Event) -> Answer:
        """Call the application for an event of a connection that it has offloaded."""
        request = {
            **base_environ(self.cfg),
            "wsgi.multithread": True,
            "wsgi.input": io.BytesIO(),
            **json.loads(environ),
            EVENT_KEY: event,
        }
        status = ""

        def start_response(line: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], None]:
            nonlocal status
            status = line
            return lambda data: None

        try:
            body = application(request, start_response)
            try:
                for _ in body:
                    pass
            finally:
                if hasattr(body, "close"):
                    body.close()
        except (Exception, SystemExit):
            self.log.exception("Error handling an event of %r", request.get("PATH_INFO"))
            return Answer(Outcome.FAILED)
        finally:
            self._count_request()
        if event.answer is not None and status.startswith("2"):
            return event.answer
        outcome = Outcome.FAILED if status.startswith("5") else Outcome.REFUSED
        self.log.info("An event of %r was answered %s", request.get("PATH_INFO"), status)
        return Answer(outcome)

    def _count_request(self) -> None:
        """An event counts towards `max_requests` like any request."""
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current event.")
            self.alive = False

    def _is_proxy(self, client: Any) -> bool:
        """Whether many clients may come from this address."""
        if not isinstance(client, tuple):
            return True
        try:
            address = ipaddress.ip_address(client[0])
        except ValueError:
            return True
        return any(address in network for network in self.proxies)


NOT_IMPLEMENTED = Refusal(
    "501 Not Implemented",
    [("Content-Type", "text/plain")],
    b"This connection cannot be offloaded: gunicorn ends TLS or HTTP/2 itself. "
    b"Let a proxy in front of gunicorn do that, and speak HTTP/1.1 to gunicorn.\n",
)


def _networks(addresses: Any) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """Return gunicorn's `forwarded_allow_ips` as networks; "*" is every address."""
    networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
    for address in addresses:
        if address == "*":
            networks += [ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")]
            continue
        try:
            networks.append(ipaddress.ip_network(address, strict=False))
        except ValueError:
            pass  # gunicorn has its own say about what it cannot read
    return networks


def _take_bytes(conn: Conn) -> bytes:
    """Take what the parser has read beyond what it has parsed."""
    unreader = _unreader(conn)
    data: bytes = unreader.buf.getvalue()
    unreader.buf = io.BytesIO()
    return data


def _unreader(conn: Any) -> Any:
    return conn.parser.unreader


def _declares_body(request: Any) -> bool:
    """Tell whether a body belongs to the request.

    The application may not have read all of it, and what is left must not be taken for the
    connection's next request.
    """
    return any(
        name.upper() == "TRANSFER-ENCODING" or (name.upper() == "CONTENT-LENGTH" and value.strip() != "0")
        for name, value in request.headers
    )


def _encode_head(response: Any) -> bytes:
    """Return status line and headers as gunicorn would send them, without those that frame a body."""
    version = ".".join(map(str, response.req.version))
    lines = [
        f"HTTP/{version} {response.status}",
        f"Server: {response.version}",
        f"Date: {http_date()}",
    ]
    for name, value in response.headers:
        # Django's GZipMiddleware leaves a response alone that says it is encoded already.
        if (name.lower(), value.lower()) != ("content-encoding", "identity"):
            lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, ""]).encode("latin-1")


def _prepare_socket(sock: socket.socket, write_timeout: float) -> None:
    """Set what outlasts the handover; a thread here has more time for it than the hub."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT_SIZE)
        if sys.platform == "linux":
            # A peer that has vanished is noticed by the kernel, not after its 15 minutes.
            timeout_ms = round(write_timeout * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
    except OSError:  # a Unix socket: its only buffer is the sender's
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNSENT_SIZE)


def _give_up(conn: Conn, response: Any) -> None:
    """Make gunicorn's objects believe that the response is complete, and close our copy.

    Close, and never shutdown: that would act on the hub's copy too.
    """
    response.headers_sent = True
    response.chunked = False
    response.force_close()
    sock = conn.sock
    conn.sock = response.sock = Gone()
    conn.close = lambda graceful=False: None  # the request's end then only counts down
    sock.close()


def _answer_instead(response: Response, refusal: Refusal) -> Iterable[bytes]:
    """Replace a response that has not begun."""
    kept = [(name, value) for name, value in response.headers if not refusal.replaces(name)]
    response.status = None
    response.headers = []
    response.response_length = None
    response.start_response(refusal.status, kept + refusal.headers)
    return [refusal.body]
