"""A WSGI application without any framework that offloads its long-lived connections.

`/sse/news/weather` and `/poll/news` follow channels. `/websocket/news` follows one and publishes to
it what its clients send; `/websocket` alone is an echo, on a channel that nobody else has.
"""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import astuple
from urllib.parse import parse_qsl

from gunicorn_realtime import BusAddress, Offload, announce
from gunicorn_realtime.bus.channel import Channel, SlowClient
from gunicorn_realtime.protocols.websocket_handshake import HandshakeError, read_handshake

bus = BusAddress(os.environ["BUS"])
announce(bus)


def application(environ, start_response):
    _, engine, *channels = environ["PATH_INFO"].split("/")
    query = dict(parse_qsl(environ["QUERY_STRING"]))
    if engine in ("sse", "poll"):
        start_response("200 OK", [("Content-Type", "text/event-stream"), ("Set-Cookie", "a=b")])
        offload = make_offload(engine, channels, query, environ.get("HTTP_LAST_EVENT_ID"))
        return environ["gunicorn_realtime.offload"](offload)
    if engine == "websocket":
        return open_websocket(environ, start_response, channels or [uuid.uuid4().hex], query)
    body = environ["wsgi.input"].read() or b"pong"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def make_offload(engine, channels, query, cursor, options=None) -> Offload:
    options = {"heartbeat": float(query.get("heartbeat", 25)), **(options or {})}
    rules = {"history": int(query.get("history", 0)), "ttl": 300.0}
    if "latest" in query:
        rules["slow_client"] = SlowClient.LATEST
    followed = tuple(Channel(name, **rules) for name in channels)
    particulars = {"publish": [astuple(channel) for channel in followed]} if engine == "websocket" else {}
    labels = (f"user:{query['user']}",) if "user" in query else ()
    expires = time.time() + float(query["lifetime"]) if "lifetime" in query else None
    return Offload(engine, followed, bus, options, cursor, particulars, labels, expires)


def open_websocket(environ, start_response, channels, query):
    fields = {
        name[5:].replace("_", "-"): value for name, value in environ.items() if name.startswith("HTTP_")
    }
    try:
        handshake = read_handshake(environ["REQUEST_METHOD"], environ["SERVER_PROTOCOL"], fields)
    except HandshakeError as exc:
        start_response(f"{exc.status} Wrong", [("Content-Length", "0"), *exc.headers.items()])
        return []
    options = {
        "envelope": query.get("envelope"),
        "max_size": int(query.get("max_size", 64 * 1024)),
        "deflate": handshake.deflate and [handshake.deflate.server_max_window_bits],
    }
    headers = handshake.headers()
    del headers["Connection"]  # the server's (PEP 3333)
    start_response("101 Switching Protocols", [*headers.items(), ("Set-Cookie", "a=b")])
    offload = make_offload("websocket", channels, query, query.get("since"), options)
    return environ["gunicorn_realtime.offload"](offload)
