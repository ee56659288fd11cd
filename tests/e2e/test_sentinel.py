"""A bus that Sentinel looks after: its master is killed under load."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from gunicorn_realtime.bus.message import decode_body
from tests.clients import Swarm
from tests.e2e.test_history import KEPT, KeptFlow
from tests.servers import RedisServer, free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

CONFIGURATION = """\
port {port}
bind 127.0.0.1
dir {directory}
sentinel monitor site 127.0.0.1 {master_port} 2
sentinel down-after-milliseconds site 1000
sentinel failover-timeout site 3000
"""


@dataclass(frozen=True)
class Site:
    master: RedisServer
    replica: RedisServer
    sentinel_ports: list[int]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinel_ports)
        return f"redis+sentinel://{hosts}/site"

    def stored(self) -> list[str]:
        """What the log has on the replica."""
        with redis.Redis(port=self.replica.port) as client:
            entries = client.xrange("rt:log:news")
        return [decode_body("news", fields[b"b"]).data.decode() for _, fields in entries]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A master, a replica of it, and three Sentinels that know each other."""
    with ExitStack() as stack:
        master = stack.enter_context(RedisServer(tmp_path, "--repl-diskless-sync-delay", "0"))
        replica = stack.enter_context(RedisServer(tmp_path, "--replicaof", "127.0.0.1", str(master.port)))
        wait_until(lambda: "master_link_status:up" in replica.cli("info", "replication"))
        ports = [stack.enter_context(sentinel(tmp_path, master.port)) for _ in range(3)]
        for port in ports:
            wait_until(lambda port=port: knows_all(port), 60, f"Sentinel {port} to know the others")
        yield Site(master, replica, ports)


@contextmanager
def sentinel(directory: Path, master_port: int) -> Iterator[int]:
    port = free_port()
    path = directory / f"sentinel-{port}.conf"  # it writes there what it learns
    path.write_text(CONFIGURATION.format(port=port, directory=directory, master_port=master_port))
    with (directory / f"sentinel-{port}.log").open("wb") as log:
        process = subprocess.Popen(
            ["redis-server", str(path), "--sentinel"], stdout=log, start_new_session=True
        )
    try:
        yield port
    finally:
        process.terminate()
        process.wait(30)


def knows_all(port: int) -> bool:
    with redis.Redis(port=port, protocol=2) as client:
        try:
            state = client.sentinel_master("site")
        except redis.RedisError:
            return False
        return (state["num-other-sentinels"], state["num-slaves"]) == (2, 1)


def test_failover_loses_nothing_that_was_replicated(plain, site):
    server = plain(bus=site.url)

    with Swarm(server.address, "/sse/news" + KEPT, 50, reconnect_after=0.05) as swarm:
        with KeptFlow(server, rate=50) as flow:
            swarm.wait_all(20)
            site.master.kill()
            before = len(flow.published)
            wait_until(lambda: len(flow.published) > before + 20, 60, "publishing to the new master")
            published = flow.stop()
        last = published[-1]
        swarm.wait_until(lambda: all(client.data[-1] == last for client in swarm.clients))

    stored = site.stored()
    assert last in stored
    for client in swarm.clients:
        texts = [text for text in client.data if text.startswith("message ")]
        resets = [text for text in client.data if not text.startswith("message ")]
        numbers = [int(text.removeprefix("message ")) for text in texts]
        assert numbers == sorted(set(numbers))
        assert resets or set(stored) <= set(texts)
        assert all('"channels"' in text for text in resets)
        assert len(client.connects) == 1
