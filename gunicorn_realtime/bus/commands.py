"""The local bus's commands: Redis' own, and those that do what the scripts do in Redis.

Each takes its client and its arguments and returns the reply, in one turn.
"""

from __future__ import annotations

import fnmatch
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..protocols import resp
from .attendance import Announcement
from .history import Entry, LogRead
from .message import MAGIC

if TYPE_CHECKING:
    from .local import Client


@dataclass(frozen=True, slots=True)
class Command:
    """How a command is run.

    Args:
        run: Takes the client and the arguments behind the command's name.
        arity: As Redis counts, the name included; if negative, at least that many.
        while_subscribed: Taken in subscribe mode too.
    """

    run: Callable[[Client, list[bytes]], bytes]
    arity: int
    while_subscribed: bool = False

    def takes(self, count: int) -> bool:
        return count == self.arity or (self.arity < 0 and count >= -self.arity)


def execute(client: Client, arguments: list[bytes]) -> bytes:
    """Return the reply to a command, with the errors that Redis gives."""
    words = 2 if arguments[0].upper() in CONTAINERS else 1
    name = b"|".join(arguments[:words])
    command = COMMANDS.get(name.upper())
    if command is None:
        return resp.encode_error(_describe_unknown(arguments, words))
    if not command.takes(len(arguments)):
        return resp.encode_error(f"ERR wrong number of arguments for '{_text(name.lower())}' command")
    if client.channels and not command.while_subscribed:
        return resp.encode_error(
            f"ERR Can't execute '{_text(name.lower())}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / "
            "PING / QUIT / RESET are allowed in this context"
        )
    return command.run(client, arguments[words:])


def _describe_unknown(arguments: list[bytes], words: int) -> str:
    name, *rest = (_text(argument[:128]) for argument in arguments[:8])
    if words == 1:
        quoted = "".join(f"'{argument}' " for argument in rest)
        return f"ERR unknown command '{name}', with args beginning with: {quoted}"
    if not rest:
        return f"ERR wrong number of arguments for '{name.lower()}' command"
    return f"ERR unknown subcommand '{rest[0]}'. Try {name.upper()} HELP."


def _subscribe(client: Client, channels: list[bytes]) -> bytes:
    replies = []
    for channel in channels:
        client.bus.subscribe(client, channel)
        replies.append(resp.encode_push(b"subscribe", channel, resp.encode_integer(len(client.channels))))
    return b"".join(replies)


def _unsubscribe(client: Client, channels: list[bytes]) -> bytes:
    channels = channels or list(client.channels)
    if not channels:
        return resp.encode_push(b"unsubscribe", None, resp.encode_integer(0))
    replies = []
    for channel in channels:
        client.bus.unsubscribe(client, channel)
        replies.append(resp.encode_push(b"unsubscribe", channel, resp.encode_integer(len(client.channels))))
    return b"".join(replies)


def _publish(client: Client, arguments: list[bytes]) -> bytes:
    channel, payload = arguments
    return resp.encode_integer(client.bus.publish(channel, payload))


def _get(client: Client, arguments: list[bytes]) -> bytes:
    value = client.bus.values.get(arguments[0])
    return resp.NULL if value is None else resp.encode_bulk_string(value)


def _set(client: Client, arguments: list[bytes]) -> bytes:
    if not client.bus.set_value(*arguments):
        return resp.encode_error("OOM command not allowed when used memory > 'maxmemory'.")
    return OK


@dataclass(frozen=True, slots=True)
class ScriptCall:
    """The arguments of a script: `numkeys key... argument...`; see `scripts/` for each.

    The first key is the clock, and the first three arguments are for a clock that was lost or
    restored. Ours lives as long as the bus.
    """

    keys: list[bytes]
    arguments: list[bytes]


def _read_call(arguments: list[bytes]) -> ScriptCall:
    count = int(arguments[0])
    if not 1 <= count < len(arguments):
        raise ValueError("numkeys")
    return ScriptCall(arguments[2 : 1 + count], arguments[4 + count :])


def _as_script(run: Callable[[Client, ScriptCall], bytes]) -> Callable[[Client, list[bytes]], bytes]:
    def run_command(client: Client, arguments: list[bytes]) -> bytes:
        try:
            return run(client, _read_call(arguments))
        except (ValueError, IndexError):
            return resp.encode_error("ERR wrong arguments for a script")

    return run_command


def _rt_publish(client: Client, call: ScriptCall) -> bytes:
    history = client.bus.history
    [key] = call.keys
    channel, body, token, count, ttl, *retry = call.arguments
    if retry and retry[0] == b"retry":
        id = history.find(_now(), key, token, int(retry[1]))
        if id is not None:
            return resp.encode_array(_encode_clock(client, id))
    entry = history.add(_now(), key, body, token, int(count), int(ttl))
    _publish_entry(client, channel, entry)
    return resp.encode_array(_encode_clock(client, entry.id))


def _publish_entry(client: Client, channel: bytes, entry: Entry) -> None:
    stamp = b"%b %d %d" % (client.bus.history.epoch.encode(), entry.id, entry.previous)
    client.bus.publish(channel, b"%b%b\n%b" % (MAGIC, stamp, entry.body))


def _rt_snapshot(client: Client, call: ScriptCall) -> bytes:
    history, now = client.bus.history, _now()
    limits = list(map(int, call.arguments))
    reads = [
        history.snapshot(now, key, limits[2 * index], limits[2 * index + 1])
        for index, key in enumerate(call.keys)
    ]
    return _encode_reads(client, history.advance(now, 0), reads)


def _rt_range(client: Client, call: ScriptCall) -> bytes:
    history, now = client.bus.history, _now()
    after, count, *ttls = map(int, call.arguments)
    reads = [history.range(now, key, after, count, ttl) for key, ttl in zip(call.keys, ttls, strict=True)]
    return _encode_reads(client, history.advance(now, 0), reads)


def _rt_tick(client: Client, call: ScriptCall) -> bytes:
    [channel] = call.arguments
    id = client.bus.history.advance(_now(), 1)
    client.bus.publish(channel, b"%b %d" % (client.bus.history.epoch.encode(), id))
    return resp.encode_array(_encode_clock(client, id))


def _rt_enter(client: Client, call: ScriptCall) -> bytes:
    prefix, hub, lifetime, *words = call.arguments
    expiry = _now() + int(lifetime)
    for channel, history, ttl, member in _grouped(words, 4):
        announcement = client.bus.attendances.enter(
            prefix, channel, member, hub, expiry, int(history), int(ttl)
        )
        if announcement is not None:
            _announce(client, announcement)
    return resp.NULL


def _rt_leave(client: Client, call: ScriptCall) -> bytes:
    prefix, hub, linger, *words = call.arguments
    expiry = _now() + int(linger)
    for channel, member in _grouped(words, 2):
        client.bus.attendances.leave(prefix, channel, member, hub, expiry)
    return resp.NULL


def _rt_sweep(client: Client, call: ScriptCall) -> bytes:
    _, count, until = call.arguments
    now = _now()
    announcements, are_more = client.bus.attendances.sweep(min(now, int(until) or now), int(count))
    for announcement in announcements:
        _announce(client, announcement)
    return resp.encode_array([resp.encode_integer(are_more), _encode_decimal(now)])


def _rt_members(client: Client, call: ScriptCall) -> bytes:
    prefix, channel = call.arguments
    members = client.bus.attendances.members(prefix, channel, _now())
    return resp.encode_array(map(resp.encode_bulk_string, members))


def _announce(client: Client, announcement: Announcement) -> None:
    channel, body = announcement.prefix + announcement.channel, announcement.body
    if not announcement.history:
        client.bus.publish(channel, b"%b\n%b" % (MAGIC, body))
        return
    key = b"%brt:log:%b" % (announcement.prefix, announcement.channel)
    entry = client.bus.history.add(_now(), key, body, b"", announcement.history, announcement.ttl)
    _publish_entry(client, channel, entry)


def _grouped(words: list[bytes], size: int) -> Iterator[list[bytes]]:
    for start in range(0, len(words), size):
        yield words[start : start + size]


def _encode_clock(client: Client, id: int) -> list[bytes]:
    return [resp.encode_bulk_string(client.bus.history.epoch.encode()), _encode_decimal(id)]


def _encode_reads(client: Client, id: int, reads: list[LogRead]) -> bytes:
    return resp.encode_array([*_encode_clock(client, id), *map(_encode_read, reads)])


def _encode_read(read: LogRead) -> bytes:
    items = [_encode_decimal(read.floor)]
    for entry in read.entries:
        items += (
            _encode_decimal(entry.id),
            _encode_decimal(entry.previous),
            resp.encode_bulk_string(entry.body),
        )
    return resp.encode_array(items)


def _encode_decimal(number: int) -> bytes:
    return resp.encode_bulk_string(b"%d" % number)


def _now() -> int:
    return time.time_ns() // 1000


def _pubsub_channels(client: Client, patterns: list[bytes]) -> bytes:
    names = list(client.bus.subscribers)
    if patterns:
        names = fnmatch.filter(names, patterns[0])
    return resp.encode_array(map(resp.encode_bulk_string, names))


def _pubsub_numsub(client: Client, channels: list[bytes]) -> bytes:
    items = []
    for channel in channels:
        items.append(resp.encode_bulk_string(channel))
        items.append(resp.encode_integer(len(client.bus.subscribers.get(channel, ()))))
    return resp.encode_array(items)


def _ping(client: Client, arguments: list[bytes]) -> bytes:
    if client.channels:
        token = arguments[0] if arguments else b""
        return resp.encode_array(map(resp.encode_bulk_string, (b"pong", token)))
    return resp.encode_bulk_string(arguments[0]) if arguments else resp.encode_simple_string("PONG")


def _echo(client: Client, arguments: list[bytes]) -> bytes:
    return resp.encode_bulk_string(arguments[0])


def _quit(client: Client, arguments: list[bytes]) -> bytes:
    client.is_quitting = True
    return OK


def _hello(client: Client, arguments: list[bytes]) -> bytes:
    return resp.encode_error("NOPROTO unsupported protocol version")


def _select(client: Client, arguments: list[bytes]) -> bytes:
    return OK if arguments == [b"0"] else resp.encode_error("ERR DB index is out of range")


def _client_setname(client: Client, arguments: list[bytes]) -> bytes:
    client.name = arguments[0]
    return OK


def _client_getname(client: Client, arguments: list[bytes]) -> bytes:
    return resp.encode_bulk_string(client.name) if client.name else resp.NULL


def _client_setinfo(client: Client, arguments: list[bytes]) -> bytes:
    return OK


def _command(client: Client, arguments: list[bytes]) -> bytes:
    return resp.encode_array(())


def _info(client: Client, arguments: list[bytes]) -> bytes:
    bus = client.bus
    lines = (
        "# Server",
        "server_name:gunicorn_realtime",
        f"process_id:{os.getpid()}",
        f"uptime_in_seconds:{time.monotonic() - bus.started:.0f}",
        "# Clients",
        f"connected_clients:{len(bus.clients)}",
        f"pubsub_clients:{sum(1 for other in bus.clients if other.channels)}",
        "# Stats",
        f"pubsub_channels:{len(bus.subscribers)}",
    )
    return resp.encode_bulk_string("".join(f"{line}\r\n" for line in lines).encode())


def _time(client: Client, arguments: list[bytes]) -> bytes:
    seconds, microseconds = divmod(_now(), 1_000_000)
    return resp.encode_array(resp.encode_bulk_string(b"%d" % number) for number in (seconds, microseconds))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


OK = resp.encode_simple_string("OK")

# Commands whose second word is part of the name.
CONTAINERS = {b"CLIENT", b"PUBSUB"}

COMMANDS = {
    b"SUBSCRIBE": Command(_subscribe, -2, while_subscribed=True),
    b"UNSUBSCRIBE": Command(_unsubscribe, -1, while_subscribed=True),
    b"PUBLISH": Command(_publish, 3),
    b"GET": Command(_get, 2),
    b"SET": Command(_set, 3),
    b"PUBSUB|CHANNELS": Command(_pubsub_channels, -2),
    b"PUBSUB|NUMSUB": Command(_pubsub_numsub, -2),
    b"PING": Command(_ping, -1, while_subscribed=True),
    b"ECHO": Command(_echo, 2),
    b"QUIT": Command(_quit, -1, while_subscribed=True),
    b"HELLO": Command(_hello, -1),
    b"SELECT": Command(_select, 2),
    b"CLIENT|SETNAME": Command(_client_setname, 3),
    b"CLIENT|GETNAME": Command(_client_getname, 2),
    b"CLIENT|SETINFO": Command(_client_setinfo, 4),
    b"COMMAND": Command(_command, -1),
    b"INFO": Command(_info, -1),
    b"TIME": Command(_time, 1),
    b"RT.PUBLISH": Command(_as_script(_rt_publish), -3),
    b"RT.SNAPSHOT": Command(_as_script(_rt_snapshot), -3),
    b"RT.RANGE": Command(_as_script(_rt_range), -3),
    b"RT.TICK": Command(_as_script(_rt_tick), -3),
    b"RT.ENTER": Command(_as_script(_rt_enter), -3),
    b"RT.LEAVE": Command(_as_script(_rt_leave), -3),
    b"RT.SWEEP": Command(_as_script(_rt_sweep), -3),
    b"RT.MEMBERS": Command(_as_script(_rt_members), -3),
}
