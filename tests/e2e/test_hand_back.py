"""What follows on a connection that was offloaded and came back, or must not come back."""

from __future__ import annotations

import pytest

from tests.clients import connect

pytestmark = [pytest.mark.e2e, pytest.mark.worker]

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: %d\r\n\r\n%b" % (len(SMUGGLED), SMUGGLED),
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED),
    ],
    ids=["length", "chunked"],
)
def test_body_that_the_application_did_not_read_is_not_taken_for_the_next_request(plain, publish, body):
    server = plain()

    with connect(server.address) as client:
        client.sendall(b"POST /poll/chat HTTP/1.1\r\nHost: x\r\n" + body)
        answer = client.recv(65536)
        publish(server, "chat", "hello")
        while data := client.recv(65536):
            answer += data

    assert b"\r\nConnection: close\r\n" in answer
    assert answer.endswith(b"\r\n\r\nhello")
    assert "/smuggled" not in server.log()


def test_empty_body_leaves_the_connection_usable(plain, publish):
    server = plain()

    with connect(server.address) as client:
        client.sendall(b"POST /poll/chat HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        answer = client.recv(65536)
        publish(server, "chat", "hello")
        while not answer.endswith(b"\r\n\r\nhello"):
            answer += client.recv(65536)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65536), b""))

    assert answer.endswith(b"\r\n\r\npong")
