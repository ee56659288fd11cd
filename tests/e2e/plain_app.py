"""A WSGI application without any framework that offloads its long-lived connections."""

from __future__ import annotations

import os

from gunicorn_realtime import BusAddress, Offload, announce

bus = BusAddress(os.environ["BUS"])
announce(bus)


def application(environ, start_response):
    _, engine, *channels = environ["PATH_INFO"].split("/")
    if engine in ("sse", "poll"):
        start_response("200 OK", [("Content-Type", "text/event-stream"), ("Set-Cookie", "a=b")])
        options = {"heartbeat": float(environ["QUERY_STRING"].partition("heartbeat=")[2] or 25)}
        return environ["gunicorn_realtime.offload"](Offload(engine, tuple(channels), bus, options))
    body = environ["wsgi.input"].read() or b"pong"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
