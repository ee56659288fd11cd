"""What a client is told that cannot be taken now, in its own protocol, so that it comes back."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .protocols import sse

# Spread over some seconds, so that clients refused together do not return together.
RETRY = (1.0, 5.0)  # seconds


@dataclass(frozen=True, slots=True)
class Refusal:
    """A response instead of the application's, whose other headers (CORS, cookies) go along."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes

    def replaces(self, header: str) -> bool:
        """Tell whether the application's header of this name must not go along."""
        name = header.lower()
        own = {name.lower() for name, _ in self.headers}
        return name in own or name in ("content-encoding", "upgrade") or name.startswith("sec-websocket-")

    def encode(self, head: bytes) -> bytes:
        """Return the whole HTTP response, for a connection that is closed behind it.

        Args:
            head: Status line and headers of the application's response.
        """
        version, *_ = head.partition(b" ")
        lines = [b"%s %s" % (version, self.status.encode())]
        for line in head.splitlines()[1:]:
            if not self.replaces(line.partition(b":")[0].decode("latin-1")):
                lines.append(line)
        lines += [f"{name}: {value}".encode("latin-1") for name, value in self.headers]
        return b"\r\n".join([*lines, b"Connection: close", b"", b""]) + self.body


def refusal(engine: str, options: Mapping[str, Any]) -> Refusal:
    """Return what a client of `engine` understands as "come back later".

    An EventSource that gets any status but 200 never comes back; all others get 503.
    """
    low, high = options.get("retry", RETRY)
    seconds = random.uniform(low, high)
    if engine == "sse":
        status, content_type = "200 OK", sse.CONTENT_TYPE
        body = sse.encode_retry(seconds)
    else:
        status, content_type = "503 Service Unavailable", "text/plain"
        body = b"This server takes no more connections now; try again later.\n"
    headers = [("Content-Type", content_type), ("Cache-Control", "no-store")]
    if engine != "sse":
        headers.append(("Retry-After", str(max(1, round(seconds)))))
    headers.append(("Content-Length", str(len(body))))
    return Refusal(status, headers, body)
