"""How requests for Engine.IO are answered, whoever reads its messages: checks, CORS, and what the hub is told."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.bus.presence import Presence
from gunicorn_realtime.plumbing.offload import Events, Offload
from gunicorn_realtime.plumbing.sessions import SESSION_ID, session_offload
from gunicorn_realtime.protocols.engineio import Refusal
from gunicorn_realtime.protocols.websocket_handshake import HandshakeError, read_handshake

from .conf import conf
from .identity import labels_of
from .opening import NO_HUB, plain_response, tuple_of
from .origin import is_welcome
from .responses import OffloadResponse, has_hub
from .views import Lifetime, expiry_of

TRANSPORTS = ("polling", "websocket")

# By the query's EIO. The official server takes one that is missing for 3; no client leaves it out.
REVISIONS = {"4": 4, "3": 3}


@dataclass(frozen=True, kw_only=True)
class EngineIOOptions:
    """What a site says of its Engine.IO connections.

    Args:
        origins: More sites whose pages may connect, as with `realtime.websocket`.
        transports: Those that clients may use.
        ping_interval: Seconds between two heartbeats.
        ping_timeout: Seconds that the other side has to answer one.
        max_payload: Bytes that a client may send at a time.
        lifetime: Seconds after which a connection ends, or a function that returns them; None is for ever.
        direct: Requests of a session that has begun go to its hub without a view.
    """

    origins: str | Iterable[str] = ()
    transports: str | Iterable[str] = TRANSPORTS
    ping_interval: float = 25.0
    ping_timeout: float = 20.0
    max_payload: int = 1_000_000
    lifetime: Lifetime = None
    direct: bool = True

    def __post_init__(self) -> None:
        transports = tuple_of(self.transports)
        object.__setattr__(self, "transports", transports)
        object.__setattr__(self, "origins", tuple_of(self.origins))
        if not transports or not set(transports) <= set(TRANSPORTS):
            raise ValueError(f"transports={self.transports!r} must be of {', '.join(TRANSPORTS)}")
        self._check("ping_interval", self.ping_interval > 0, "more than 0 seconds")
        self._check("ping_timeout", self.ping_timeout > 0, "more than 0 seconds")
        self._check("max_payload", self.max_payload > 0, "more than 0 bytes")

    def _check(self, name: str, is_right: bool, expected: str) -> None:
        value = getattr(self, name)
        if not is_right or not math.isfinite(value):
            raise ValueError(f"{name}={value!r} must be {expected}")

    @classmethod
    def of(cls, view: Any, values: Mapping[str, Any]) -> Self:
        """Return a view class's options, of which `values` may change some."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: values.get(name, getattr(view, name)) for name in names})

    def for_hub(self, revision: int) -> dict[str, Any]:
        return {
            "revision": revision,
            "prefix": conf.prefix,
            "ping_interval": self.ping_interval,
            "ping_timeout": self.ping_timeout,
            "max_payload": self.max_payload,
            "transports": list(tuple_of(self.transports)),
            "direct": self.direct,
        }


@dataclass(frozen=True, kw_only=True)
class SocketIOOptions(EngineIOOptions):
    """What a site says of its Socket.IO connections.

    Args:
        connect_timeout: Seconds that a client has to connect to a namespace.
        recovery: Seconds within which a client that was interrupted gets its rooms and what it missed; 0 is off.
    """

    connect_timeout: float = 45.0
    recovery: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("connect_timeout", self.connect_timeout > 0, "more than 0 seconds")
        self._check("recovery", self.recovery >= 0, "0 seconds or more")

    def for_hub(self, revision: int) -> dict[str, Any]:
        return {
            **super().for_hub(revision),
            "connect_timeout": self.connect_timeout,
            "recovery": self.recovery,
        }


@dataclass(frozen=True, slots=True)
class Opening:
    """A request for a new session that may be granted.

    Args:
        transport: By which the session begins.
        revision: Of Engine.IO.
        b64: The client takes no bytes over polling, which it says in revision 3.
        headers: Of the response.
    """

    transport: str
    revision: int
    b64: bool
    headers: dict[str, str]


def take_opening(request: HttpRequest, options: EngineIOOptions) -> Opening | HttpResponseBase:
    """Read a request; return the answer to one that is for no new session.

    The order of the checks is that of the official server, so that the same requests have the same errors.
    """
    welcome = is_welcome(request, tuple_of(options.origins))
    cors = _cors_headers(request) if welcome else {}
    if request.method == "OPTIONS":
        return _answer_preflight(request, cors) if welcome else refuse(Refusal.FORBIDDEN)
    transport, session = request.GET.get("transport", ""), request.GET.get("sid", "")
    if transport not in tuple_of(options.transports):
        return refuse(Refusal.TRANSPORT_UNKNOWN, cors)
    if session and not SESSION_ID.fullmatch(session):
        return refuse(Refusal.SESSION_UNKNOWN, cors)
    if not session and request.method != "GET":
        return refuse(Refusal.BAD_HANDSHAKE_METHOD, cors)
    headers = {**cors, "Cache-Control": "no-store"}
    if transport == "websocket":
        try:
            headers.update(_upgrade_headers(request))
        except HandshakeError as exc:
            return refuse(Refusal.BAD_REQUEST, {**cors, **exc.headers})
    if session:
        return _continue(request, session, headers)
    if not welcome:
        return refuse(Refusal.FORBIDDEN)
    revision = REVISIONS.get(request.GET.get("EIO", ""))
    if revision is None:
        return refuse(Refusal.UNSUPPORTED_VERSION, cors)
    return Opening(transport, revision, bool(request.GET.get("b64")), headers)


def open_session(
    request: HttpRequest,
    opening: Opening,
    engine: str,
    options: EngineIOOptions,
    particulars: Mapping[str, Any] | None = None,
    *,
    channels: Iterable[Channel] = (),
    more_options: Mapping[str, Any] | None = None,
    kwargs: Mapping[str, Any],
    events: Events | None = None,
    presence: Presence | None = None,
) -> HttpResponseBase:
    """Return the response that begins a session in the hub."""
    if not has_hub(request):
        return plain_response(501, NO_HUB)
    offload = Offload(
        engine,
        tuple(channels),
        conf.bus,
        {**options.for_hub(opening.revision), **(more_options or {})},
        None,
        {"transport": opening.transport, "b64": opening.b64, **(particulars or {})},
        labels_of(request),
        expiry_of(options.lifetime, request, kwargs),
        events,
        presence,
    )
    return _offload(request, offload, opening.transport, opening.headers)


def refuse(refusal: Refusal, headers: Mapping[str, str] | None = None) -> HttpResponse:
    """Return an error as the official server words it."""
    return HttpResponse(refusal.body, status=refusal.status, content_type="application/json", headers=headers)


def _continue(request: HttpRequest, session: str, headers: dict[str, str]) -> HttpResponseBase:
    """Return the response to a request of a session that has begun."""
    if not has_hub(request):
        return plain_response(501, NO_HUB)
    offload = session_offload(request.META, session)
    return _offload(request, offload, request.GET["transport"], headers)


def _offload(
    request: HttpRequest, offload: Offload, transport: str, headers: dict[str, str]
) -> OffloadResponse:
    status = 101 if transport == "websocket" else 200
    response = OffloadResponse(request, offload, status=status, headers=headers)
    response.headers.pop("Content-Type", None)  # the hub's, who knows what it sends
    return response


def _upgrade_headers(request: HttpRequest) -> dict[str, str]:
    version = request.META.get("SERVER_PROTOCOL", "")
    headers = read_handshake(request.method or "", version, request.headers, may_compress=False).headers()
    del headers["Connection"]  # the server's (PEP 3333): the hub adds it
    return headers


def _cors_headers(request: HttpRequest) -> dict[str, str]:
    """Return what lets a page of another site, which is welcome, read the answer (Fetch, section 3.3)."""
    origin = request.headers.get("Origin")
    if origin is None:
        return {}
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Credentials": "true",
        "Vary": "Origin",
    }


def _answer_preflight(request: HttpRequest, cors: dict[str, str]) -> HttpResponse:
    headers = dict(cors)
    if cors:
        headers["Access-Control-Allow-Methods"] = "GET, POST"
        # Some clients are told to send headers of the site's own (`extraHeaders`).
        if wanted := request.headers.get("Access-Control-Request-Headers"):
            headers["Access-Control-Allow-Headers"] = wanted
            headers["Vary"] = "Origin, Access-Control-Request-Headers"
    response = HttpResponse(status=204, headers=headers)
    del response.headers["Content-Type"]
    return response
