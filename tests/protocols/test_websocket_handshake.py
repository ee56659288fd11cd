from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_realtime.protocols.websocket_deflate import Deflate
from gunicorn_realtime.protocols.websocket_handshake import (
    Handshake,
    HandshakeError,
    parse_extensions,
    read_handshake,
)

# The request of RFC 6455, section 1.2.
REQUEST = {
    "Host": "server.example.com",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Origin": "http://example.com",
    "Sec-WebSocket-Protocol": "chat, superchat",
    "Sec-WebSocket-Version": "13",
}


def read(method="GET", http_version="HTTP/1.1", may_compress=True, **changed: str | None) -> Handshake:
    fields = REQUEST | {name.replace("_", "-"): value for name, value in changed.items()}
    headers = {name: value for name, value in fields.items() if value is not None}
    return read_handshake(method, http_version, headers, may_compress=may_compress)


def test_request_of_the_specification_is_accepted():
    handshake = read()

    assert handshake == Handshake("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", ("chat", "superchat"))
    assert handshake.headers("chat") == {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        "Sec-WebSocket-Protocol": "chat",
    }


def test_response_names_no_subprotocol_and_no_extension_without_need():
    assert list(read().headers()) == ["Upgrade", "Connection", "Sec-WebSocket-Accept"]


def test_header_names_may_be_in_any_case():
    lower = {name.lower(): value for name, value in REQUEST.items()}
    assert read_handshake("GET", "HTTP/1.1", lower) == read()


@pytest.mark.parametrize(
    "changed",
    [
        {"Upgrade": "WebSocket"},
        {"Upgrade": "h2c, websocket"},
        {"Connection": "keep-alive, upgrade"},
        {"Connection": "UPGRADE,"},
        {"Sec_WebSocket_Key": " dGhlIHNhbXBsZSBub25jZQ== "},
        {"http_version": "HTTP/1.2"},
        {"http_version": "HTTP/2.0"},
    ],
)
def test_spellings_that_mean_the_same_are_accepted(changed):
    assert read(**changed) == read()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "POST"}, "opened with GET, not with POST"),
        ({"method": "get"}, "opened with GET, not with get"),
        ({"http_version": "HTTP/1.0"}, "HTTP/1.1 or higher, not over HTTP/1.0"),
        ({"http_version": "HTTP/0.9"}, "not over HTTP/0.9"),
        ({"http_version": "RTSP/1.1"}, "not over RTSP/1.1"),
        ({"http_version": ""}, "HTTP/1.1 or higher"),
        ({"Upgrade": None}, "no 'Upgrade: websocket'"),
        ({"Upgrade": "websockets"}, "no 'Upgrade: websocket'"),
        ({"Upgrade": "websocket/13"}, "no 'Upgrade: websocket'"),
        ({"Connection": None}, "no 'Connection: Upgrade'; a proxy"),
        ({"Connection": "keep-alive"}, "no 'Connection: Upgrade'"),
        ({"Connection": "no-upgrade-please"}, "no 'Connection: Upgrade'"),
        ({"Sec_WebSocket_Key": None}, "not 16 bytes in base64"),
        ({"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZ"}, "not 16 bytes in base64"),
        ({"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ=="[:-4] + "===="}, "not 16 bytes in base64"),
        ({"Sec_WebSocket_Key": "c2hvcnQ="}, "not 16 bytes in base64"),
        ({"Sec_WebSocket_Key": "dGhl IHNhbXBsZSBub25jZQ=="}, "not 16 bytes in base64"),
        ({"Sec_WebSocket_Key": "é" * 24}, "not 16 bytes in base64"),
        ({"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==,dGhlIHNhbXBsZSBub25jZQ=="}, "not 16 bytes"),
        ({"Sec_WebSocket_Protocol": "chat room"}, "Sec-WebSocket-Protocol is not a list of tokens"),
        ({"Sec_WebSocket_Protocol": "chat; v=1"}, "Sec-WebSocket-Protocol is not a list of tokens"),
        ({"Sec_WebSocket_Extensions": "permessage deflate"}, "a name that is no token"),
        ({"Sec_WebSocket_Extensions": "; x"}, "a name that is no token"),
        ({"Sec_WebSocket_Extensions": "x;"}, "a malformed parameter"),
        ({"Sec_WebSocket_Extensions": "x; y="}, "a malformed parameter"),
        ({"Sec_WebSocket_Extensions": 'x; y=""'}, "a malformed parameter"),
        ({"Sec_WebSocket_Extensions": 'x; y="a b"'}, "a malformed parameter"),
        ({"Sec_WebSocket_Extensions": 'x; y="a'}, "a malformed parameter"),
        ({"Sec_WebSocket_Extensions": 'x; y="a,b"'}, "a malformed parameter"),
    ],
)
def test_request_that_opens_no_websocket_is_answered_400(changed, message):
    with pytest.raises(HandshakeError, match=message) as refused:
        read(**changed)
    assert (refused.value.status, refused.value.headers) == (400, {})


@pytest.mark.parametrize("version", [None, "", "8", "7", "14", "013", "13, 8"])
def test_client_of_another_version_is_told_ours(version):
    with pytest.raises(HandshakeError, match=r"Sec-WebSocket-Version is .*, not 13") as refused:
        read(Sec_WebSocket_Version=version)
    assert (refused.value.status, refused.value.headers) == (426, {"Sec-WebSocket-Version": "13"})


@pytest.mark.parametrize(
    ("header", "subprotocols"),
    [
        (None, ()),
        ("chat", ("chat",)),
        ("v2.chat.example , v1.chat.example", ("v2.chat.example", "v1.chat.example")),
        (",chat,,", ("chat",)),
    ],
)
def test_subprotocols_keep_the_clients_order(header, subprotocols):
    assert read(Sec_WebSocket_Protocol=header).subprotocols == subprotocols


@pytest.mark.parametrize(
    ("header", "extensions"),
    [
        # Those of RFC 6455, section 9.1.
        ("foo", [("foo", [])]),
        ("bar; baz=2", [("bar", [("baz", "2")])]),
        ("foo, bar; baz=2", [("foo", []), ("bar", [("baz", "2")])]),
        ("deflate-stream", [("deflate-stream", [])]),
        (
            "mux; max-channels=4; flow-control, deflate-stream",
            [("mux", [("max-channels", "4"), ("flow-control", None)]), ("deflate-stream", [])],
        ),
        ("private-extension", [("private-extension", [])]),
        ('x; y="10"', [("x", [("y", "10")])]),
        (r'x; y="1\0"', [("x", [("y", "10")])]),
        ("x \t;\ty = 10 ,, z", [("x", [("y", "10")]), ("z", [])]),
        ("", []),
    ],
)
def test_extensions_are_a_list_with_parameters(header, extensions):
    assert parse_extensions(header) == extensions


NO_TAKEOVER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


@pytest.mark.parametrize(
    ("offer", "response"),
    [
        ("permessage-deflate", NO_TAKEOVER),
        ("permessage-deflate; client_max_window_bits", NO_TAKEOVER),  # what browsers send
        ("permessage-deflate; client_max_window_bits=8", NO_TAKEOVER),
        ("permessage-deflate; server_no_context_takeover", NO_TAKEOVER),
        ("permessage-deflate; client_no_context_takeover", NO_TAKEOVER),
        ("permessage-deflate; server_max_window_bits=9", f"{NO_TAKEOVER}; server_max_window_bits=9"),
        ('permessage-deflate; server_max_window_bits="10"', f"{NO_TAKEOVER}; server_max_window_bits=10"),
        ("permessage-deflate; server_max_window_bits=15", f"{NO_TAKEOVER}; server_max_window_bits=15"),
        # The first offer that can be met (RFC 7692, section 5.1).
        ("x-webkit-deflate-frame, permessage-deflate", NO_TAKEOVER),
        ("permessage-deflate; unknown, permessage-deflate", NO_TAKEOVER),
        (
            "permessage-deflate; server_max_window_bits=8, permessage-deflate; server_max_window_bits=11",
            f"{NO_TAKEOVER}; server_max_window_bits=11",
        ),
        ("permessage-deflate, permessage-deflate; server_max_window_bits=9", NO_TAKEOVER),
    ],
)
def test_offer_of_permessage_deflate_is_accepted(offer, response):
    headers = read(Sec_WebSocket_Extensions=offer).headers()
    assert headers["Sec-WebSocket-Extensions"] == response


@pytest.mark.parametrize(
    "offer",
    [
        None,
        "x-webkit-deflate-frame",
        "Permessage-Deflate",
        "permessage-deflate; unknown",
        "permessage-deflate; unknown=1",
        "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; server_max_window_bits=10; server_max_window_bits=10",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; client_no_context_takeover=true",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=7",
        "permessage-deflate; server_max_window_bits=8",  # valid, but zlib cannot do it
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=09",
        "permessage-deflate; server_max_window_bits=1_0",
        "permessage-deflate; client_max_window_bits=7",
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; client_max_window_bits=x",
    ],
)
def test_offer_that_cannot_be_met_is_declined_and_no_error(offer):
    handshake = read(Sec_WebSocket_Extensions=offer)
    assert handshake.deflate is None
    assert "Sec-WebSocket-Extensions" not in handshake.headers()


def test_application_may_do_without_compression():
    assert read(Sec_WebSocket_Extensions="permessage-deflate", may_compress=False).deflate is None


@pytest.mark.parametrize("deflate", [Deflate(), Deflate(9)])
def test_parameters_cross_processes_as_json(deflate):
    assert Deflate(**json.loads(json.dumps(asdict(deflate)))) == deflate


@given(st.dictionaries(st.sampled_from(list(REQUEST)), st.text(max_size=20)), st.text(max_size=8))
def test_garbage_gives_a_handshake_or_its_error(changed, http_version):
    for version in ("HTTP/1.1", http_version):
        try:
            read_handshake("GET", version, REQUEST | changed)
        except HandshakeError as exc:
            assert exc.status in (400, 426)


@given(st.text(alphabet='ab;,= \t"\\é', max_size=12))
def test_extensions_that_look_right_are_parsed_or_refused(header):
    try:
        extensions = parse_extensions(header)
    except HandshakeError:
        return
    written = ", ".join(
        "; ".join([name, *(key if value is None else f"{key}={value}" for key, value in parameters)])
        for name, parameters in extensions
    )
    assert parse_extensions(written) == extensions


def test_long_malformed_header_is_refused_at_once():
    # That would outlast the time that a test may take.
    with pytest.raises(HandshakeError, match="a malformed parameter"):
        parse_extensions("x; y=" + '"a' * 100_000)


def test_process_that_checks_handshakes_need_not_load_gevent():
    program = (
        "import sys; import gunicorn_realtime.protocols.websocket_handshake; print('gevent' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
