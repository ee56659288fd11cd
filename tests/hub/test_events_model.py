"""Whatever happens in whatever order: an application hears each event once, one at a time, and the end last."""

from __future__ import annotations

import os
import select
import socket
import time
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gunicorn_realtime.hub import events as events_module
from gunicorn_realtime.plumbing.events import (
    BEGUN,
    Answer,
    Close,
    Effect,
    EventCall,
    EventKind,
    Outcome,
    Send,
)
from gunicorn_realtime.plumbing.frames import Frame
from gunicorn_realtime.plumbing.lines import Lines, receive
from gunicorn_realtime.plumbing.offload import Events
from gunicorn_realtime.settings import Settings
from tests.hub.conftest import Client, HubUnderTest, close_lines
from tests.hub.test_websocket import TEXT, close_frame, websocket
from tests.protocols.test_websocket import frame

KINDS = (EventKind.RECEIVED, EventKind.CLOSED)


@dataclass
class Speaker:
    """A client, and what its application has heard of it."""

    number: int
    client: Client
    sent: int = 0
    heard: list[str] = field(default_factory=list)  # numbers of its messages, and how it ended
    is_gone: bool = False


@dataclass
class Taken:
    """A call that an event thread has taken."""

    end: socket.socket
    speaker: Speaker
    word: str
    is_begun: bool = False


class EventsMachine(RuleBasedStateMachine):
    @initialize(running=st.integers(1, 3), pending=st.integers(0, 2), size=st.sampled_from([2000, 1 << 20]))
    def start(self, running: int, pending: int, size: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(events_module, "MAX_RUNNING", running)
        self.patch.setattr(events_module, "MAX_PENDING", pending)
        self.patch.setattr(events_module, "MAX_SIZE", size)
        self.lines = Lines(1, os.getuid(), os.getgid())
        self.hub = HubUnderTest(Settings(), self.lines)
        self.speakers: list[Speaker] = []
        self.taken: list[Taken] = []

    def alive(self) -> list[Speaker]:
        return [speaker for speaker in self.speakers if not speaker.is_gone]

    @rule()
    def join(self) -> None:
        client, number = Client(), len(self.speakers)
        opening = websocket()
        offload = replace(opening.offload, events=Events(KINDS))
        opening = replace(opening, offload=offload, environ=str(number))
        self.hub.take(client.give_to_hub(), self.hub._engine(opening), opening)
        if client.read().startswith(b"HTTP/1.1 101"):
            self.speakers.append(Speaker(number, client))
        else:
            client.close()

    @rule(index=st.integers(0, 20), count=st.integers(1, 5))
    def speak(self, index: int, count: int) -> None:
        if alive := self.alive():
            speaker = alive[index % len(alive)]
            words = [str(speaker.sent + number).encode() for number in range(count)]
            try:
                speaker.client.sock.sendall(b"".join(frame(TEXT, word) for word in words))
            except OSError:
                speaker.is_gone = True  # the hub has closed it
            speaker.sent += count

    @rule(index=st.integers(0, 20), is_polite=st.booleans())
    def leave(self, index: int, is_polite: bool) -> None:
        if alive := self.alive():
            speaker = alive[index % len(alive)]
            if is_polite:
                try:
                    speaker.client.sock.sendall(close_frame(1000))
                except OSError:
                    pass
            speaker.client.read()
            speaker.client.close()
            speaker.is_gone = True

    @rule()
    def turn(self) -> None:
        self.hub.turn()

    @rule()
    def take(self) -> None:
        if not select.select([self.lines.events_worker], [], [], 0)[0]:
            return
        data, [fd] = receive(self.lines.events_worker)
        call = EventCall.from_frame(Frame.decode(data))
        end = socket.socket(fileno=fd)
        if call.size:
            self.hub.turn_until(lambda: select.select([end], [], [], 0)[0])
        word = end.recv(100).decode() if call.size else f"end {call.event.code}"
        speaker = next(speaker for speaker in self.speakers if str(speaker.number) == call.environ)
        assert all(other.speaker is not speaker for other in self.taken), "two calls at a time"
        self.taken.append(Taken(end, speaker, word))

    @rule(index=st.integers(0, 5))
    def begin(self, index: int) -> None:
        if self.taken:
            taken = self.taken[index % len(self.taken)]
            if not taken.is_begun:
                self.hear(taken)

    def hear(self, taken: Taken) -> None:
        taken.is_begun = True
        taken.speaker.heard.append(taken.word)
        try:
            taken.end.sendall(BEGUN)
        except OSError:
            pass

    @rule(
        index=st.integers(0, 5),
        outcome=st.sampled_from([Outcome.DONE, Outcome.DONE, Outcome.DONE, Outcome.FAILED, Outcome.REFUSED]),
        effects=st.sampled_from([(), (Send(b"hi"),), (Close(4000),), (Send(b"x" * 50_000),) * 3]),
    )
    def answer(self, index: int, outcome: Outcome, effects: tuple[Effect, ...]) -> None:
        if not self.taken:
            return
        taken = self.taken.pop(index % len(self.taken))
        if not taken.is_begun:
            self.hear(taken)
        with taken.end:
            try:
                taken.end.sendall(Answer(outcome, effects).encode())
            except OSError:
                pass

    @rule(index=st.integers(0, 5))
    def die(self, index: int) -> None:
        if self.taken:
            self.taken.pop(index % len(self.taken)).end.close()

    @precondition(lambda self: hasattr(self, "hub"))
    @invariant()
    def nothing_is_heard_twice_or_behind_the_end(self) -> None:
        for speaker in self.speakers:
            *words, last = speaker.heard or ["end"]
            numbers = [word for word in (*words, last) if not word.startswith("end")]
            assert not any(word.startswith("end") for word in words)
            assert numbers == [str(number) for number in range(len(numbers))]

    def teardown(self) -> None:
        if not hasattr(self, "hub"):
            return
        try:
            self.finish()
        finally:
            self.patch.undo()
            for taken in self.taken:
                taken.end.close()
            for speaker in self.speakers:
                speaker.client.close()
            self.hub.close_all()
            close_lines(self.lines)

    def finish(self) -> None:
        """Everybody leaves, and every call is answered: then all ends have been heard, and nothing waits."""
        deadline = time.monotonic() + 20
        while self.alive():
            self.leave(0, False)
        while self.hub.connections or self.hub.calls.is_busy:
            assert time.monotonic() < deadline, "something is stuck"
            self.hub.turn()
            self.take()
            self.answer(0, Outcome.DONE, ())
        assert (self.hub.calls.size, self.hub.calls.held) == (0, set())
        self.nothing_is_heard_twice_or_behind_the_end()


TestEvents = EventsMachine.TestCase
TestEvents.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, report_multiple_bugs=False
)
