from __future__ import annotations

import os
from pathlib import Path

from django.db import connection

import django_realtime as realtime


def note(text: str) -> None:
    """Write a line, in one call that nothing can cut."""
    file = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{text}\n".encode())
    os.close(file)


@realtime.receiver("numbers")
def note_text(message):
    note(message.text)


@realtime.receiver("gated")
def wait_at_gate(message):
    """Do not come back before somebody writes to the FIFO."""
    note(f"{message.text} begins")
    Path(os.environ["GATE"]).read_text()
    note(f"{message.text} ends")


@realtime.receiver("queries")
def query(message):
    note("new connection" if connection.connection is None else "old connection")
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
