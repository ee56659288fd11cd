"""Giving a response's connection away."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from django.http import HttpRequest, StreamingHttpResponse

from gunicorn_realtime.plumbing.offload import ENVIRON_KEY, Offload

from . import inline


class OffloadResponse(StreamingHttpResponse):
    """A response whose connection goes to the hub when the server asks for its body.

    Until then it is a response as any other: middleware may add headers and cookies, or return
    something else, and then nothing is offloaded.

    Args:
        request: Must satisfy `can_offload`.
        offload: What the hub is to do with the connection.
        kwargs: As for `HttpResponse`: `headers`, `status`, …
    """

    def __init__(self, request: HttpRequest, offload: Offload, **kwargs: Any) -> None:
        self.offload = offload
        hand_over: Callable[[Offload], Iterable[bytes]] = request.META.get(ENVIRON_KEY, inline.stream)
        super().__init__(self._body(hand_over), **kwargs)
        # GZipMiddleware leaves alone what has an encoding. The worker sends the head without it.
        self.headers["Content-Encoding"] = "identity"
        if self.status_code == 101:
            del self.headers["Content-Type"]

    def _body(self, hand_over: Callable[[Offload], Iterable[bytes]]) -> Iterator[bytes]:
        yield from hand_over(self.offload)


def has_hub(request: HttpRequest) -> bool:
    """Tell whether `request` came through a server with a hub, which drives every protocol."""
    return ENVIRON_KEY in request.META


def can_offload(request: HttpRequest) -> bool:
    """Tell whether `request` came through a server that holds streams; the development server has no hub."""
    return has_hub(request) or inline.serves_inline(request.META)
