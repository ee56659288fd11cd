"""Publishing to a bus, reading its clock and what it keeps, and who is there."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis

from ..errors import ProtocolError
from .address import BusAddress
from .channel import Channel
from .connecting import (
    TIMEOUT,
    check_local,
    connection_options,
    encode_name,
    make_pool,
    translated_errors,
)
from .history import make_epoch
from .message import Message, Outgoing, Stamp, decode_body, encode, encode_body, parse_cursor
from .presence import Presence, decode_member, encode_member
from .script import SCRIPTS, Call, Script, Word

logger = logging.getLogger(__name__)

# Added to the age of a message that is sent again, for two clocks that do not run alike.
RETRY_MARGIN = 1_000_000  # microseconds

# A log in a script's reply: its floor, then id, previous id and body of each entry.
LogReply = list[bytes]
FIELDS = 3


@dataclass(frozen=True, slots=True)
class Clock:
    """How far a bus is: no message that is published from now on has an id up to this one.

    Args:
        epoch: The bus's life; ids of different epochs are not comparable.
        id: Microseconds.
    """

    epoch: str
    id: int

    @property
    def cursor(self) -> str:
        return f"{self.epoch}-{self.id}"


@dataclass(frozen=True, slots=True)
class Log:
    """Kept messages of one channel.

    Args:
        entries: With stamps, in ascending order.
        floor: No message between this id and the last of the entries is missing.
    """

    entries: list[Message]
    floor: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The newest messages of channels, and the clock, at one moment.

    Args:
        clock: Everything in the logs has an id up to it, everything that comes later a greater one.
        logs: By the channels' names.
    """

    clock: Clock
    logs: dict[str, Log]


@dataclass(frozen=True, slots=True)
class Page:
    """The messages of channels after an id, and the clock, at one moment.

    Args:
        clock: As in a `Snapshot`.
        logs: By the channels' names. If a floor is above the id, messages are missing.
        bound: Up to this id the logs are complete; what they have beyond it is for the next page.
    """

    clock: Clock
    logs: dict[str, Log]
    bound: int


class Publisher:
    """Sends messages to a bus and reads its history, from any thread and also after a fork.

    Channels are given as the bus knows them, see `BusAddress.channel`.

    Args:
        address: The bus.
        timeout: How long to wait for a connection, and for an answer, in seconds.

    Raises:
        ValueError: The address names no bus.
    """

    def __init__(self, address: BusAddress, timeout: float = TIMEOUT) -> None:
        self.address = address
        self._options = connection_options(address, timeout)
        self._client: Any = self._make_client()
        self._pid = os.getpid()
        self._seen = Clock("", 0)

    def publish(self, channel: str, payload: bytes) -> int:
        """Send one payload as it is, without a history, and return how many subscribers it had.

        Raises:
            BusUnavailable: The bus refused or did not answer; the message may have been sent.
        """
        with self._answers():
            return int(self._connected_client().publish(encode_name(channel), payload))

    def send(self, messages: Sequence[Outgoing]) -> list[str | None]:
        """Send messages in their order and one round trip.

        A message is not sent twice, also where an answer is lost: those that are kept can be found
        again in the history, and if all are, the bus is asked once more.

        Returns:
            For each message its cursor, or None if its channel keeps no history.

        Raises:
            BusUnavailable: The bus refused or did not answer; any of the messages may have been sent.
        """
        if not messages:
            return []
        started = time.monotonic()
        tokens = [secrets.token_hex(8) if message.channel.history else None for message in messages]

        def make_calls(age: int | None = None) -> list[Call]:
            return [
                self._publish_call(message, token, age)
                for message, token in zip(messages, tokens, strict=True)
            ]

        with self._answers():
            try:
                replies = self._run(make_calls())
            except (redis.ConnectionError, redis.TimeoutError, OSError):
                if None in tokens:
                    raise
                self._client.connection_pool.disconnect(inuse_connections=False)
                age = round((time.monotonic() - started) * 1_000_000) + RETRY_MARGIN
                replies = self._run(make_calls(age))
        return [
            None if token is None else self._read_clock(reply).cursor
            for token, reply in zip(tokens, replies, strict=True)
        ]

    def snapshot(self, channels: Sequence[Channel]) -> Snapshot:
        """Return the newest messages of channels, as many of each as its history keeps.

        Raises:
            BusUnavailable: The bus refused or did not answer.
        """
        kept = [channel for channel in channels if channel.history]
        limits = [limit for channel in kept for limit in (channel.history, _ttl_of(channel))]
        clock, replies = self._read_logs("snapshot", kept, limits)
        logs = _decode_logs(clock, kept, replies)
        logs |= {channel.name: Log([], clock.id) for channel in channels if not channel.history}
        return Snapshot(clock, logs)

    def read_after(self, channels: Sequence[Channel], after: int, count: int = 256) -> Page:
        """Return the oldest messages of channels after an id.

        Args:
            channels: Those without history are left out.
            after: Microseconds.
            count: How many messages of each channel at most.

        Raises:
            BusUnavailable: The bus refused or did not answer.
        """
        kept = [channel for channel in channels if channel.history]
        clock, replies = self._read_logs("range", kept, [after, count, *map(_ttl_of, kept)])
        lasts = (int(fields[-FIELDS]) for _, *fields in replies if len(fields) >= count * FIELDS)
        return Page(clock, _decode_logs(clock, kept, replies), min(lasts, default=clock.id))

    def tick(self, channel: str) -> Clock:
        """Advance the clock, and publish "<epoch> <id>" to a channel.

        Args:
            channel: Who receives its own tick has received all that was published before.

        Raises:
            BusUnavailable: The bus refused or did not answer.
        """
        return self._read_clock(self._ask("tick", [], [encode_name(channel)]))

    def enter(self, hub: str, presences: Sequence[Presence], lifetime: float) -> None:
        """Say that a hub has connections of members, or still has; who was not there joins.

        Args:
            hub: Whose entries they are.
            lifetime: For how long, in seconds, unless it is said again.

        Raises:
            BusUnavailable: The bus refused or did not answer; it may be said again.
        """
        words: list[Word] = [hub, _microseconds(lifetime)]
        for presence in presences:
            ttl = _microseconds(presence.ttl)
            words += [self._bare(presence.channel), presence.history, ttl, encode_member(presence.member)]
        self._ask_of_presence("enter", words)

    def leave(self, hub: str, presences: Sequence[Presence], linger: float) -> None:
        """Say that a hub has no connections of members any more.

        Args:
            hub: Whose entries they were.
            linger: Seconds in which they may be entered again, and nobody has left.

        Raises:
            BusUnavailable: The bus refused or did not answer; it may be said again.
        """
        words: list[Word] = [hub, _microseconds(linger)]
        for presence in presences:
            words += [self._bare(presence.channel), encode_member(presence.member)]
        self._ask_of_presence("leave", words)

    def sweep(self, count: int, until: int = 0) -> tuple[bool, int]:
        """Let members leave whose entries have expired, in whatever channel.

        Args:
            count: How many entries to remove at most.
            until: Only those that had expired by this time of the bus, in microseconds; 0 is now. A bus
                that does not answer may do all the same, later, what it was asked for.

        Returns:
            Whether there may be more of them, and the bus's time.

        Raises:
            BusUnavailable: The bus refused or did not answer.
        """
        are_more, now = self._ask_of_presence("sweep", [count, until])
        return bool(are_more), int(now)

    def members(self, channel: str) -> list[str]:
        """Return who is in a channel now, sorted.

        Raises:
            BusUnavailable: The bus refused or did not answer.
        """
        return sorted(map(decode_member, self._ask_of_presence("members", [self._bare(channel)])))

    def note_seen(self, clock: Clock) -> None:
        """Take note of how far the bus was seen otherwise: if it is not so far any more, it begins another epoch."""
        if clock.epoch == self._seen.epoch and clock.id > self._seen.id:
            self._seen = clock

    def read_clock(self) -> Clock:
        """Return how far the bus is.

        Raises:
            BusUnavailable: The bus refused or did not answer.
        """
        return self.snapshot([]).clock

    def load_cursor(self, consumer: str) -> Clock | None:
        """Return up to where a consumer has handled everything, or None if it has never said so.

        Raises:
            BusUnavailable: The bus refused or did not answer.
        """
        with self._answers():
            value = self._connected_client().get(encode_name(self.address.consumer_key(consumer)))
        cursor = parse_cursor(_text(value)) if value else None
        return Clock(*cursor) if cursor else None

    def save_cursor(self, consumer: str, position: Clock) -> None:
        """Keep what `load_cursor` returns.

        Raises:
            BusUnavailable: The bus refused or did not answer.
        """
        with self._answers():
            self._connected_client().set(
                encode_name(self.address.consumer_key(consumer)), position.cursor.encode()
            )

    def count_hubs(self) -> int:
        """Return how many hubs follow this bus."""
        return self.count_followers(self.address.hubs_channel)

    def count_followers(self, channel: str) -> int:
        """Return how many connections follow a channel.

        Raises:
            BusUnavailable: The bus refused or did not answer.
        """
        with self._answers():
            [(_, count)] = self._connected_client().pubsub_numsub(encode_name(channel))
            return int(count)

    def may_evict(self) -> bool:
        """Return whether the bus may drop history for want of memory; False if it does not tell.

        Raises:
            BusUnavailable: The bus did not answer.
        """
        if self.address.is_local:
            return False
        with self._answers():
            try:
                settings = self._connected_client().config_get("maxmemory*")
            except redis.ResponseError:
                return False  # CONFIG is forbidden, or not known
        texts = {_text(name): _text(value) for name, value in settings.items()}
        return texts.get("maxmemory", "0") != "0" and texts.get("maxmemory-policy") != "noeviction"

    def close(self) -> None:
        self._client.connection_pool.disconnect()

    @contextmanager
    def _answers(self) -> Iterator[None]:
        with translated_errors(self.address):
            try:
                yield
            except redis.ResponseError as exc:
                if "Protocol error" in str(exc):
                    # The bus hangs up behind it, which the pool may not notice in time.
                    self._client.connection_pool.disconnect(inuse_connections=False)
                raise

    def _publish_call(self, message: Outgoing, token: str | None, age: int | None) -> Call:
        channel = message.channel
        name = encode_name(channel.name)
        if token is None:
            return Call(None, ["PUBLISH", name, _encode(encode, message)])
        arguments: list[Word] = [
            name,
            _encode(encode_body, message),
            token,
            channel.history,
            _ttl_of(channel),
        ]
        if age is not None:
            arguments += ["retry", age]
        return self._script_call("publish", [channel], arguments)

    def _read_logs(
        self, script: str, channels: list[Channel], arguments: Sequence[Word]
    ) -> tuple[Clock, list[LogReply]]:
        epoch, id, *replies = self._ask(script, channels, arguments)
        return self._read_clock((epoch, id)), replies

    def _ask(self, script: str, channels: list[Channel], arguments: Sequence[Word]) -> Any:
        with self._answers():
            [reply] = self._run([self._script_call(script, channels, arguments)])
            return reply

    def _ask_of_presence(self, script: str, words: list[Word]) -> Any:
        return self._ask(script, [], [encode_name(self.address.prefix), *words])

    def _bare(self, channel: str) -> bytes:
        return encode_name(channel.removeprefix(self.address.prefix))

    def _script_call(self, script: str, channels: list[Channel], arguments: Sequence[Word]) -> Call:
        keys = [self.address.clock_key, *(self.address.log_key(channel.name) for channel in channels)]
        seen = self._seen
        return Call(
            SCRIPTS[script],
            [len(keys), *map(encode_name, keys), make_epoch(), seen.epoch, seen.id, *arguments],
        )

    def _run(self, calls: list[Call]) -> list[Any]:
        """Make calls in one round trip, and return their replies.

        Where Redis has none of the scripts, these calls have done nothing and are made again. A
        call alone may find that out; several could then change places, so the first of each script
        brings it along.
        """
        client = self._connected_client()
        replies = self._execute(client, calls, brings_scripts=len(calls) > 1)
        missing = [n for n, reply in enumerate(replies) if isinstance(reply, redis.exceptions.NoScriptError)]
        if missing:
            again = self._execute(client, [calls[n] for n in missing], brings_scripts=True)
            for n, reply in zip(missing, again, strict=True):
                replies[n] = reply
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    def _execute(self, client: Any, calls: list[Call], brings_scripts: bool) -> list[Any]:
        pipeline = client.pipeline(transaction=False)
        brought: set[Script] = set()
        for call in calls:
            if call.script is None:
                pipeline.execute_command(*call.words)
            elif self.address.is_local:
                pipeline.execute_command(call.script.command, *call.words)
            elif brings_scripts and call.script not in brought:
                brought.add(call.script)
                pipeline.execute_command("EVAL", call.script.source, *call.words)
            else:
                pipeline.execute_command("EVALSHA", call.script.sha, *call.words)
        return list(pipeline.execute(raise_on_error=False))

    def _read_clock(self, reply: Sequence[bytes]) -> Clock:
        epoch, id = reply
        clock = Clock(epoch.decode(), int(id))
        if clock.epoch != self._seen.epoch or clock.id > self._seen.id:
            self._seen = clock
        return clock

    def _connected_client(self) -> Any:
        # redis-py's pool notices a fork as well, but keeps a lock that a thread may have held then.
        if self._pid != os.getpid():
            self._client = self._make_client()
            self._pid = os.getpid()
        check_local(self.address)
        return self._client

    def _make_client(self) -> redis.Redis:
        # Before it gives out a connection, the pool looks whether the server has closed it.
        return redis.Redis(connection_pool=make_pool(self._options))


def _ttl_of(channel: Channel) -> int:
    return _microseconds(channel.ttl)


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)


def _decode_logs(clock: Clock, channels: list[Channel], replies: list[LogReply]) -> dict[str, Log]:
    return {
        channel.name: _decode_log(clock, channel.name, reply)
        for channel, reply in zip(channels, replies, strict=True)
    }


def _decode_log(clock: Clock, channel: str, reply: LogReply) -> Log:
    floor, *fields = reply
    entries = []
    for id, previous, body in zip(*(fields[n::FIELDS] for n in range(FIELDS)), strict=True):
        try:
            entries.append(decode_body(channel, body, Stamp(clock.epoch, int(id), int(previous))))
        except ProtocolError as exc:
            logger.warning("A message in the history of %r was dropped: %s", channel, exc)
    return Log(entries, int(floor))


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _encode(encode: Callable[..., bytes], message: Outgoing) -> bytes:
    return encode(message.data, message.event, is_binary=message.is_binary, emission=message.emission)
