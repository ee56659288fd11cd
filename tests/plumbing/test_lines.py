"""Real socketpairs, and a process in the hub's place where one has to die."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator

import pytest

from gunicorn_realtime.errors import OffloadRefused, TooLarge
from gunicorn_realtime.plumbing.frames import MAX_FRAME_SIZE, Frame, Kind
from gunicorn_realtime.plumbing.lines import SEND_TIMEOUT, Line, Lines, receive
from tests.waiting import wait_until

TIMEOUT = 20.0  # seconds; far more than a slow machine needs

FRAME = Frame(Kind.ANNOUNCE, {"bus": ["local:/x", ""]})
LARGE_FRAME = Frame(Kind.HANDOVER, {}, rest=b"x" * 50_000)


@pytest.fixture
def make_lines() -> Iterator[Callable[..., Lines]]:
    made = []

    def make(hubs: int = 1, uid: int = os.getuid(), gid: int = os.getgid()) -> Lines:
        made.append(Lines(hubs, uid, gid))
        return made[-1]

    yield make
    for lines in made:
        if os.path.exists(lines.directory):
            lines.close(0)
        for line in lines.lines:
            line.hand_worker.close()
            line.hand_hub.close()
            os.close(line.lifeline_hub)
            os.close(line.lock)
        for end in (lines.back_worker, lines.back_hub, lines.events_worker, lines.events_hub):
            end.close()


@pytest.fixture
def lines(make_lines) -> Lines:
    return make_lines()


@pytest.fixture
def line(lines: Lines) -> Line:
    lines.lines[0].hand_hub.setblocking(False)
    return lines.lines[0]


def is_same_file(one: int, other: int) -> bool:
    return os.path.samestat(os.fstat(one), os.fstat(other))


def test_descriptor_arrives_with_its_frame_and_children_do_not_inherit_it(lines, line):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        lines.send(FRAME, [theirs.fileno()])

        data, [fd] = receive(line.hand_hub)

        assert Frame.decode(data) == FRAME
        assert is_same_file(fd, theirs.fileno())
        assert not os.get_inheritable(fd)
        os.close(fd)


def test_frame_without_a_descriptor_arrives_without_one(lines, line):
    lines.send(FRAME)

    assert receive(line.hand_hub) == (FRAME.encode(), [])


def test_largest_frame_crosses_whole(lines, line):
    size = MAX_FRAME_SIZE - len(Frame(Kind.HANDOVER, {}).encode())
    frame = Frame(Kind.HANDOVER, {}, rest=os.urandom(size))

    lines.send(frame)

    data, _ = receive(line.hand_hub)
    assert Frame.decode(data) == frame


def test_larger_frame_is_refused_before_it_is_sent(lines, line):
    with pytest.raises(TooLarge):
        lines.send(Frame(Kind.HANDOVER, {}, rest=b"x" * MAX_FRAME_SIZE))
    with pytest.raises(BlockingIOError):
        receive(line.hand_hub)


def test_reading_an_empty_line_does_not_wait(line):
    with pytest.raises(BlockingIOError):
        receive(line.hand_hub)


def test_message_with_more_descriptors_than_one_is_refused_and_leaks_none(line):
    with socket.socket() as sock:
        # As many as fit into the room that the kernel gives for one: it rounds up.
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [sock.fileno()] * 8))]
        line.hand_worker.sendmsg([FRAME.encode()], rights)
        before = os.listdir("/proc/self/fd")

        with pytest.raises(OffloadRefused, match="a handover was cut"):
            receive(line.hand_hub)

        assert os.listdir("/proc/self/fd") == before


def fill(line: Line) -> int:
    """Send until the queue is full, without waiting; return how many messages it holds."""
    sent = 0
    try:
        while True:
            line.hand_worker.sendmsg([LARGE_FRAME.encode()], [], socket.MSG_DONTWAIT)
            sent += 1
    except BlockingIOError:
        return sent


def empty(line: Line) -> int:
    received = 0
    try:
        while True:
            receive(line.hand_hub)
            received += 1
    except BlockingIOError:
        return received


def test_full_queue_refuses_after_a_while_then_at_once_until_there_is_room(lines, line):
    assert fill(line) > 0

    started = time.monotonic()
    with pytest.raises(OffloadRefused, match="the queue of hub 0 is full"):
        lines.send(LARGE_FRAME)
    waited = time.monotonic() - started
    assert SEND_TIMEOUT * 0.9 < waited < TIMEOUT
    assert line.is_stuck

    # A thousand of the patient kind would take half an hour.
    for _ in range(1000):
        with pytest.raises(OffloadRefused, match="the queue of hub 0 is full"):
            lines.send(LARGE_FRAME)
    assert time.monotonic() - started < TIMEOUT

    empty(line)
    lines.send(FRAME)
    assert not line.is_stuck
    assert receive(line.hand_hub) == (FRAME.encode(), [])


def test_sender_that_waits_goes_on_when_the_hub_reads(lines, line):
    held = fill(line)
    sender = threading.Thread(target=lines.send, args=(LARGE_FRAME,))
    sender.start()
    deadline = time.monotonic() + TIMEOUT
    received = 0
    while received <= held:
        assert time.monotonic() < deadline
        select.select([line.hand_hub], [], [], 1)
        received += empty(line)
    sender.join(TIMEOUT)

    assert received == held + 1
    assert not line.is_stuck


def test_line_without_a_reader_refuses(lines, line):
    line.hand_hub.close()

    with pytest.raises(OffloadRefused, match=f"hub 0 cannot be reached: .*{os.strerror(errno.EPIPE)}"):
        lines.send(FRAME)


def test_hubs_get_frames_in_turn(make_lines):
    lines = make_lines(3)
    for _ in range(6):
        lines.send(FRAME)

    for line in lines.lines:
        line.hand_hub.setblocking(False)
        assert empty(line) == 2


def test_stopping_gunicorn_sends_nothing_more_and_asks_each_hub_once_to_drain(make_lines):
    lines = make_lines(2)
    assert not lines.stopping

    lines.drain_hubs()
    lines.drain_hubs()

    assert lines.stopping
    with pytest.raises(OffloadRefused, match="gunicorn is stopping"):
        lines.send(FRAME)
    for line in lines.lines:
        assert os.read(line.lifeline_hub, 100) == b"d"


def test_lifeline_ends_only_with_the_arbiter(make_lines):
    lines = make_lines()
    [line] = lines.lines
    pid = os.fork()
    if pid == 0:  # a worker
        lines.become_worker()
        os.read(line.lifeline_hub, 1)  # ends with the arbiter's side, or would wait for ever
        os._exit(0)

    lines.close(0)

    assert os.read(line.lifeline_hub, 100) == b""
    assert os.waitpid(pid, 0)[1] == 0


# Locks the file that it is given, says so, and stays until it is killed.
FAKE_HUB = """
import fcntl, os, sys, time
fcntl.flock(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def fake_hub(lines: Lines) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", FAKE_HUB, lines.lines[0].lock_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_arbiter_waits_for_a_hub_that_lives_and_sees_it_die(lines, fake_hub):
    assert not lines.wait_for_hubs(0)

    result: list[bool] = []
    waiter = threading.Thread(target=lambda: result.append(lines.wait_for_hubs(TIMEOUT)))
    waiter.start()
    fake_hub.kill()
    waiter.join(TIMEOUT)

    assert result == [True]
    assert lines.wait_for_hubs(0)  # and may be asked again


def test_hubs_that_are_gone_are_not_waited_for(make_lines):
    assert make_lines(3).wait_for_hubs(0)


def test_close_removes_the_directory_also_when_a_hub_does_not_end(lines, fake_hub):
    assert sorted(os.listdir(lines.directory)) == ["hub-0.lock"]

    lines.close(0)

    assert not os.path.exists(lines.directory)
    assert fake_hub.poll() is None


def test_directory_and_locks_are_nobody_elses(lines):
    [line] = lines.lines
    assert os.stat(lines.directory).st_mode & 0o777 == 0o700
    assert os.stat(line.lock_path).st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser gives files away")
def test_directory_and_locks_belong_to_the_workers_user(make_lines):
    lines = make_lines(1, 65534, 65534)

    for path in (lines.directory, lines.lines[0].lock_path):
        assert (os.stat(path).st_uid, os.stat(path).st_gid) == (65534, 65534)


def test_no_descriptor_of_the_lines_is_inherited_by_programs(lines):
    [line] = lines.lines
    ends = [lines.back_worker, lines.back_hub, lines.events_worker, lines.events_hub]
    sockets = [line.hand_worker, line.hand_hub, *ends]
    for fd in [line.lifeline_hub, line.lifeline_arbiter, line.lock, *(sock.fileno() for sock in sockets)]:
        assert not os.get_inheritable(fd)


def test_lock_of_a_dead_hub_is_free_for_the_next(lines, fake_hub):
    path = lines.lines[0].lock_path
    lock = os.open(path, os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fake_hub.kill()

    def is_free() -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    wait_until(is_free, TIMEOUT)
    os.close(lock)
