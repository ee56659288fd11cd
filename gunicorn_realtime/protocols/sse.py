"""Server-sent events: the text/event-stream format (WHATWG HTML, section 9.2).

Only the server's side: a client's request is ordinary HTTP, and it sends nothing afterwards.
"""

from __future__ import annotations

import re

CONTENT_TYPE = "text/event-stream"

# A lone comment line: no blank line behind it, since some clients take that for an empty event.
COMMENT = b":\n"

LINE_BREAK = re.compile(rb"\r\n|\r|\n")


def encode_event(data: bytes, *, event: str | None = None, id: str | None = None) -> bytes:
    """Return one event.

    Args:
        data: UTF-8 text of any number of lines, ended by CR, LF or CRLF; what is not UTF-8 is
            replaced by U+FFFD, as the format has no bytes.
        event: The event's type, one line; "message" if absent.
        id: What the client sends as Last-Event-ID when it returns, one line without NUL.

    Raises:
        ValueError: `event` or `id` would end its line and so could forge other fields.
    """
    if event is None and id is None and data.isascii() and b"\n" not in data and b"\r" not in data:
        return b"data: %b\n\n" % data  # as most are
    fields = []
    if event is not None:
        fields.append(b"event: " + _one_line("event", event))
    if id is not None:
        if "\0" in id:
            raise ValueError("an SSE id must not contain NUL")
        fields.append(b"id: " + _one_line("id", id))
    if not data.isascii():
        data = data.decode("utf-8", "replace").encode()
    if b"\n" in data or b"\r" in data:
        fields += [b"data: " + line for line in LINE_BREAK.split(data)]
    else:
        fields.append(b"data: " + data)
    fields.append(b"\n")
    return b"\n".join(fields)


def encode_retry(seconds: float) -> bytes:
    """Return a block that sets how long the client waits before it reconnects, and is no event."""
    return b"retry: %d\n\n" % round(seconds * 1000)


def encode_id(id: str) -> bytes:
    """Return a block that sets the client's last event id, and is no event."""
    return b"id: " + _one_line("id", id) + b"\n\n"


def _one_line(name: str, value: str) -> bytes:
    if not isinstance(value, str):
        raise TypeError(f"an SSE {name} must be a string: {value!r}")
    if "\n" in value or "\r" in value:
        raise ValueError(f"an SSE {name} must be one line: {value!r}")
    return value.encode("utf-8", "replace")
