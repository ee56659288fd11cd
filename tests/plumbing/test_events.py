from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_realtime.bus.channel import Channel, SlowClient
from gunicorn_realtime.errors import ProtocolError, TooLarge
from gunicorn_realtime.plumbing import events
from gunicorn_realtime.plumbing.events import (
    BEGUN,
    SIZE,
    Answer,
    AnswerReader,
    Close,
    Event,
    EventCall,
    EventKind,
    Outcome,
    Send,
    Subscribe,
    Unsubscribe,
    decode_effects,
    encode_effects,
    encode_environ,
)
from gunicorn_realtime.plumbing.frames import Frame, Kind

texts = st.text(st.characters(codec="utf-8"))
channels = st.builds(Channel, texts, st.integers(0, 1000), st.floats(0, 1e6), st.sampled_from(SlowClient))
effects = st.one_of(
    st.builds(Send, st.binary(), st.just(True)),
    st.builds(Send, texts.map(str.encode)),
    st.builds(Subscribe, channels, st.none() | texts),
    st.builds(Unsubscribe, texts),
    st.builds(Close, st.integers(1000, 4999), texts),
)
answers = st.builds(
    Answer, st.sampled_from(Outcome), st.lists(effects, max_size=5).map(tuple), st.none() | texts
)
calls = st.builds(
    EventCall,
    st.builds(Event, st.sampled_from(EventKind), st.just(b""), st.booleans(), st.integers(0, 4999), texts),
    texts,
    st.integers(0, 1 << 24),
)


@given(calls)
def test_event_call_arrives_as_it_was_sent(call):
    assert EventCall.from_frame(Frame.decode(call.frame().encode())) == call


@given(answers, st.data())
def test_answer_arrives_wherever_it_is_cut(answer, data):
    stream = BEGUN + answer.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    reader = AnswerReader()

    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        assert reader.answer is None or start == end
        reader.feed(stream[start:end])

    assert reader.is_begun
    assert reader.answer == answer


@given(st.binary(max_size=200))
def test_garbage_is_no_answer(garbage):
    reader = AnswerReader()
    try:
        reader.feed(garbage)
    except ProtocolError:
        return
    assert reader.answer is None or reader.is_begun


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=20))
def test_other_json_is_no_answer(value):
    with pytest.raises(ProtocolError, match="an answer cannot be read"):
        Answer.decode(json.dumps(value).encode())


@pytest.mark.parametrize(
    "effect",
    [["shout", "x"], ["text"], ["text", 7], ["bytes", "§"], ["close", "1000", ""], ["subscribe", "x", None]],
)
def test_effect_that_is_none_is_named(effect):
    with pytest.raises(ValueError):
        decode_effects([effect])


@given(st.lists(effects))
def test_effects_cross_in_their_order(some):
    assert decode_effects(json.loads(json.dumps(encode_effects(some)))) == some


def test_answer_that_is_too_large_is_not_sent_and_not_read(monkeypatch):
    monkeypatch.setattr(events, "MAX_ANSWER_SIZE", 1000)

    with pytest.raises(TooLarge, match="more than 1000"):
        Answer(Outcome.DONE, (Send(b"x" * 1000),)).encode()
    with pytest.raises(TooLarge, match="1001 bytes, more than 1000"):
        AnswerReader().feed(BEGUN + SIZE.pack(1001))


def test_environ_crosses_with_what_is_text():
    environ = {
        "PATH_INFO": "/chät/",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https",
        "wsgi.input": object(),
    }

    assert json.loads(encode_environ(environ)) == {"PATH_INFO": "/chät/", "wsgi.url_scheme": "https"}


@pytest.mark.parametrize(
    "fields", [{}, {"kind": "shouted", "size": 0, "binary": False, "code": 0, "state": ""}]
)
def test_frame_that_is_no_event_call_is_refused(fields):
    with pytest.raises(ProtocolError, match="an event call lacks"):
        EventCall.from_frame(Frame(Kind.EVENT, fields))
