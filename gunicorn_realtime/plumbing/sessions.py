"""Sessions of Engine.IO that live in a hub, and how requests of theirs find it, whichever worker takes them.

A session's id names its home:

    <machine>.<hub>.<generation>.<120 random bits>

`machine` is for the proxy in front of several; `generation` is the hub's life. Where the site wants its
views to see every request, "~" stands for the dots, and a worker leaves the request to the application.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from ..bus.address import BusAddress
from ..protocols.engineio import Refusal
from ..protocols.websocket_handshake import HandshakeError, read_handshake
from .offload import ENVIRON_KEY, Offload

SEPARATORS = DIRECT, INDIRECT = ".", "~"

RANDOM_SIZE = 15  # bytes

SESSION_ID = re.compile(r"[0-9A-Za-z_-]{1,40}([.~])([0-9]{1,4})\1[0-9A-Za-z_-]{1,16}\1[0-9A-Za-z_-]{20}")

# A session's request needs no bus: the session has one.
NO_BUS = BusAddress("")


@dataclass(frozen=True, slots=True)
class Home:
    """Where a hub's sessions are."""

    machine: str
    hub: int
    generation: str

    @classmethod
    def of(cls, machine: str, hub: int) -> Home:
        """Return the home of a hub that begins; a machine without a name gets one that does not tell its own."""
        hashed = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
        return cls(machine or hashed, hub, secrets.token_hex(3))

    def make_session_id(self, *, is_direct: bool) -> str:
        parts = (self.machine, str(self.hub), self.generation, secrets.token_urlsafe(RANDOM_SIZE))
        return (DIRECT if is_direct else INDIRECT).join(parts)


def hub_of(session_id: str) -> int:
    """Return the number of the hub that a session's id names.

    Raises:
        ValueError: It is none.
    """
    match = SESSION_ID.fullmatch(session_id)
    if match is None:
        raise ValueError(f"{session_id!r} is no session's id")
    return int(match[2])


def direct_session(environ: Mapping[str, Any]) -> str | None:
    """Return the id of the session that a request is for, if it goes to its hub without the application."""
    query: str = environ.get("QUERY_STRING", "")
    if "sid=" not in query or environ["REQUEST_METHOD"] not in ("GET", "POST"):
        return None
    fields = parse_qs(query, max_num_fields=100) if query.count("&") < 100 else {}
    session = fields.get("sid", [""])[0]
    match = SESSION_ID.fullmatch(session)
    is_meant = match is not None and match[1] == DIRECT and "EIO" in fields and "transport" in fields
    return session if is_meant else None


def session_offload(environ: Mapping[str, Any], session: str) -> Offload:
    """Return how a request of a session goes to its hub."""
    query = parse_qs(environ.get("QUERY_STRING", ""))
    length = environ.get("CONTENT_LENGTH") or ""
    is_chunked = "chunked" in environ.get("HTTP_TRANSFER_ENCODING", "").lower()
    particulars = {
        "method": environ["REQUEST_METHOD"],
        "transport": query.get("transport", [""])[0],
        "length": None if is_chunked else int(length) if length.isdecimal() else 0,
        "is_binary": environ.get("CONTENT_TYPE", "").startswith("application/octet-stream"),
    }
    return Offload("engineio", (), NO_BUS, particulars=particulars, session=session)


def serve_session(environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """A WSGI application that brings requests of sessions to their hubs."""
    session = direct_session(environ)
    assert session is not None
    offload = session_offload(environ, session)
    status, headers = "200 OK", {}
    if offload.particulars["transport"] == "websocket":
        fields = {
            name.removeprefix("HTTP_").replace("_", "-"): value
            for name, value in environ.items()
            if name.startswith("HTTP_")
        }
        try:
            handshake = read_handshake(
                environ["REQUEST_METHOD"], environ["SERVER_PROTOCOL"], fields, may_compress=False
            )
        except HandshakeError:
            body = Refusal.BAD_REQUEST.body
            start_response(
                "400 Bad Request",
                [("Content-Type", "application/json"), ("Content-Length", str(len(body)))],
            )
            return [body]
        status, headers = "101 Switching Protocols", handshake.headers()
        del headers["Connection"]
    start_response(status, list(headers.items()))
    offloaded: Iterable[bytes] = environ[ENVIRON_KEY](offload)
    return offloaded
