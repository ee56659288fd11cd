"""The opening handshake of WebSocket, the server's side (RFC 6455, section 4.2).

It runs in the application's view, apart from the frames: that process need not load what they need.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ProtocolError
from . import websocket_deflate
from .websocket_deflate import Deflate

VERSION = "13"

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # section 1.3

HTTP_VERSION = re.compile(r"HTTP/(\d)\.(\d)")

TOKEN_CHARACTER = r"[!#$%&'*+.^_`|~0-9A-Za-z-]"  # RFC 9110, section 5.6.2
TOKEN = re.compile(f"{TOKEN_CHARACTER}+")

# An extension's parameter (section 9.1). A quoted value is a token as well, once it is unquoted,
# so no comma or semicolon is ever inside one.
PARAMETER = re.compile(
    rf'({TOKEN.pattern})(?:[ \t]*=[ \t]*(?:({TOKEN.pattern})|"((?:\\?{TOKEN_CHARACTER})+)"))?'
)

Extension = tuple[str, list[tuple[str, str | None]]]


class HandshakeError(ProtocolError):
    """The request opens no WebSocket.

    Attributes:
        status: Of the HTTP response that says so.
        headers: It must have these.
    """

    def __init__(self, message: str, status: int = 400, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class Handshake:
    """A valid request to open a WebSocket.

    Attributes:
        accept: The proof that its key was read.
        subprotocols: What the client speaks, what it likes best first.
        deflate: How messages may be compressed, or None.
    """

    accept: str
    subprotocols: tuple[str, ...] = ()
    deflate: Deflate | None = None

    def headers(self, subprotocol: str | None = None) -> dict[str, str]:
        """Return the headers of the response that opens the connection; its status is 101.

        Args:
            subprotocol: The one of `subprotocols` that will be spoken.
        """
        headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": self.accept}
        if subprotocol is not None:
            headers["Sec-WebSocket-Protocol"] = subprotocol
        if self.deflate is not None:
            headers["Sec-WebSocket-Extensions"] = self.deflate.response
        return headers


def read_handshake(
    method: str, http_version: str, headers: Mapping[str, str], *, may_compress: bool = True
) -> Handshake:
    """Read a client's request. Whether its Origin is welcome is the caller's to decide.

    Args:
        method: As in the request line.
        http_version: Likewise, such as "HTTP/1.1".
        headers: By name in any case; a repeated header's values are joined by commas.
        may_compress: Agree to permessage-deflate if the client offers it.

    Raises:
        HandshakeError: It is no request to open a WebSocket, or one that must be refused.
    """
    fields = {name.lower(): value.strip() for name, value in headers.items()}
    _check_request_line(method, http_version)
    _check_upgrade(fields)
    accept = _accept(fields.get("sec-websocket-key", ""))
    extensions = parse_extensions(fields.get("sec-websocket-extensions", ""))
    deflate = _negotiate(extensions) if may_compress else None
    return Handshake(accept, _parse_subprotocols(fields.get("sec-websocket-protocol", "")), deflate)


def _check_request_line(method: str, http_version: str) -> None:
    if method != "GET":
        raise HandshakeError(f"a WebSocket is opened with GET, not with {method}")
    version = HTTP_VERSION.fullmatch(http_version)
    if version is None or (int(version[1]), int(version[2])) < (1, 1):
        raise HandshakeError(f"a WebSocket is opened over HTTP/1.1 or higher, not over {http_version}")


def _check_upgrade(fields: Mapping[str, str]) -> None:
    # A 426 should have an Upgrade header too (RFC 9110), which WSGI keeps to the server (PEP 3333).
    if "websocket" not in _split_list(fields.get("upgrade", "").lower()):
        raise HandshakeError("the request has no 'Upgrade: websocket'")
    if "upgrade" not in _split_list(fields.get("connection", "").lower()):
        raise HandshakeError("the request has no 'Connection: Upgrade'; a proxy may have removed it")
    version = fields.get("sec-websocket-version", "")
    if version != VERSION:
        message = f"Sec-WebSocket-Version is {version!r}, not {VERSION}"
        raise HandshakeError(message, 426, {"Sec-WebSocket-Version": VERSION})


def _accept(key: str) -> str:
    try:
        nonce = base64.b64decode(key, validate=True)
    except ValueError:
        nonce = b""
    if len(nonce) != 16:
        raise HandshakeError("Sec-WebSocket-Key is not 16 bytes in base64")
    digest = hashlib.sha1((key + GUID).encode(), usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


def _parse_subprotocols(header: str) -> tuple[str, ...]:
    names = _split_list(header)
    if not all(map(TOKEN.fullmatch, names)):
        raise HandshakeError("Sec-WebSocket-Protocol is not a list of tokens")
    return tuple(names)


def parse_extensions(header: str) -> list[Extension]:
    """Return the extensions of a Sec-WebSocket-Extensions header and their parameters.

    Raises:
        HandshakeError: It is malformed; section 9.1 allows no leniency.
    """
    return [_parse_extension(extension) for extension in _split_list(header)]


def _parse_extension(text: str) -> Extension:
    name, *parameters = (part.strip(" \t") for part in text.split(";"))
    if not TOKEN.fullmatch(name):
        raise HandshakeError("Sec-WebSocket-Extensions has a name that is no token")
    return name, [_parse_parameter(parameter) for parameter in parameters]


def _parse_parameter(text: str) -> tuple[str, str | None]:
    match = PARAMETER.fullmatch(text)
    if match is None:
        raise HandshakeError("Sec-WebSocket-Extensions has a malformed parameter")
    name, value, quoted = match.groups()
    return name, quoted.replace("\\", "") if quoted else value


def _negotiate(extensions: list[Extension]) -> Deflate | None:
    """Take the first offer of permessage-deflate that can be met: the client likes it best."""
    for name, parameters in extensions:
        if name == websocket_deflate.NAME:
            deflate = websocket_deflate.negotiate(parameters)
            if deflate is not None:
                return deflate
    return None


def _split_list(header: str) -> list[str]:
    """Return the elements of a list; empty ones do not count (RFC 9110, section 5.6.1)."""
    return [element for part in header.split(",") if (element := part.strip(" \t"))]
