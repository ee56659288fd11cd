from __future__ import annotations

import pytest
from redis.sentinel import SentinelConnectionPool

from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.client import Publisher
from gunicorn_realtime.bus.connecting import connection_options, make_pool
from gunicorn_realtime.errors import BusUnavailable


def pool_of(url: str) -> SentinelConnectionPool:
    pool = make_pool(connection_options(BusAddress(url), 2.0))
    assert isinstance(pool, SentinelConnectionPool)
    return pool


def sentinels_of(pool: SentinelConnectionPool) -> list[dict]:
    return [client.connection_pool.connection_kwargs for client in pool.sentinel_manager.sentinels]


def test_sentinel_url_names_sentinels_service_and_database():
    pool = pool_of("redis+sentinel://one:26380,two,[::1]:26381/site/3")

    assert [(s["host"], s["port"]) for s in sentinels_of(pool)] == [
        ("one", 26380),
        ("two", 26379),
        ("::1", 26381),
    ]
    assert pool.service_name == "site"
    assert pool.connection_kwargs["db"] == 3


def test_user_and_password_are_redis_s_and_sentinels_have_their_own():
    pool = pool_of("redis+sentinel://me:p%40ss@one/site?sentinel_password=other")

    assert (pool.connection_kwargs["username"], pool.connection_kwargs["password"]) == ("me", "p@ss")
    (sentinel,) = sentinels_of(pool)
    assert (sentinel["username"], sentinel["password"]) == (None, "other")


def test_neither_redis_nor_sentinels_are_asked_twice_or_waited_for_long():
    pool = pool_of("redis+sentinel://one/site?socket_timeout=100")

    for options in (pool.connection_kwargs, *sentinels_of(pool)):
        assert (options["socket_timeout"], options["socket_connect_timeout"]) == (2.0, 2.0)
        assert options["protocol"] == 2
        assert options["retry"].get_retries() == 0


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://one",
        "redis+sentinel://one/",
        "redis+sentinel:///site",
        "redis+sentinel://one,,two/site",
        "redis+sentinel://one:port/site",
        "redis+sentinel://one/site/db",
        "redis+sentinel://:hunter/2@one/site",
    ],
)
def test_sentinel_url_that_names_no_bus_is_refused(url):
    with pytest.raises(ValueError, match="cannot be read") as caught:
        Publisher(BusAddress(url))
    assert "hunter" not in str(caught.value)


def test_error_shows_no_password():
    publisher = Publisher(BusAddress("redis+sentinel://:hunter2@127.0.0.1:1/site?sentinel_password=secret"))

    with pytest.raises(BusUnavailable) as caught:
        publisher.read_clock()

    assert str(caught.value) == (
        "the bus at redis+sentinel://127.0.0.1:1/site is unavailable: no Sentinel answers that knows its master"
    )
