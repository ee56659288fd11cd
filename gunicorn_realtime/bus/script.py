"""The scripts that make several steps in Redis one; `scripts/` has them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from importlib import resources

Word = bytes | str | int


@dataclass(frozen=True)
class Script:
    """A script for Redis, and a command of the local bus that does the same.

    Args:
        name: Of the file, and of the command.
        parts: The files that are put before it.
    """

    name: str
    parts: tuple[str, ...]

    @property
    def command(self) -> str:
        return f"RT.{self.name.upper()}"

    @cached_property
    def source(self) -> str:
        directory = resources.files(__package__) / "scripts"
        return "".join((directory / f"{name}.lua").read_text() for name in (*self.parts, self.name))

    @cached_property
    def sha(self) -> str:
        return hashlib.sha1(self.source.encode()).hexdigest()


PARTS = {
    "publish": ("clock", "append"),
    "snapshot": ("clock",),
    "range": ("clock",),
    "tick": ("clock",),
    "enter": ("clock", "append", "presence"),
    "leave": ("clock", "append", "presence"),
    "sweep": ("clock", "append", "presence"),
    "members": ("clock", "append", "presence"),
}
SCRIPTS = {name: Script(name, parts) for name, parts in PARTS.items()}


@dataclass(frozen=True, slots=True)
class Call:
    """A command, or the words behind a script's name."""

    script: Script | None
    words: list[Word]
