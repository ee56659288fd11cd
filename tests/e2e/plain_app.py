"""A WSGI application without any framework that offloads its long-lived connections."""

from __future__ import annotations

import os
from urllib.parse import parse_qsl

from gunicorn_realtime import BusAddress, Offload, announce
from gunicorn_realtime.bus.channel import Channel, SlowClient

bus = BusAddress(os.environ["BUS"])
announce(bus)


def application(environ, start_response):
    _, engine, *channels = environ["PATH_INFO"].split("/")
    if engine in ("sse", "poll"):
        start_response("200 OK", [("Content-Type", "text/event-stream"), ("Set-Cookie", "a=b")])
        query = dict(parse_qsl(environ["QUERY_STRING"]))
        options = {"heartbeat": float(query.get("heartbeat", 25))}
        rules = {"history": int(query.get("history", 0)), "ttl": 300.0}
        if "latest" in query:
            rules["slow_client"] = SlowClient.LATEST
        followed = tuple(Channel(name, **rules) for name in channels)
        cursor = environ.get("HTTP_LAST_EVENT_ID")
        return environ["gunicorn_realtime.offload"](Offload(engine, followed, bus, options, cursor))
    body = environ["wsgi.input"].read() or b"pong"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
