"""A part of a config that is read key by key, so that nothing of it is passed over in silence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s3prl_mtl.errors import UserError, nearest


class Notes:
    """What is said of keys that have no meaning here: by reason, the keys in their order."""

    def __init__(self) -> None:
        self._by_reason: dict[str, list[str]] = {}

    def add(self, key: str, reason: str) -> None:
        self._by_reason.setdefault(reason, []).append(key)

    def lines(self) -> list[str]:
        return [f"{', '.join(keys)}: {reason}" for reason, keys in self._by_reason.items()]


class Block:
    """A mapping of the file; what is neither taken nor dropped is an unknown key.

    Args:
        values: the mapping.
        path: dotted, for messages.
        file: that it is from; relative paths in it may be relative to the folder above it, where
            s3prl has its `downstream` folder.
        notes: what collects the keys without a meaning.
    """

    def __init__(self, values: object, path: str, file: Path, notes: Notes) -> None:
        if not isinstance(values, Mapping):
            raise UserError(f"{path} must be a mapping, not {values!r}.", where=str(file))
        self._values = {str(key): value for key, value in values.items()}
        self._asked = list(self._values)
        self._parts: list[Block] = []
        self.path = path
        self.file = file
        self.notes = notes

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def left(self) -> list[str]:
        """The keys that are left."""
        return list(self._values)

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a key, which is then done with."""
        self._asked.append(key)
        return self._values.pop(key, default)

    def part(self, key: str) -> Block:
        """The mapping under a key; empty if there is none."""
        values = self.take(key)
        block = Block({} if values is None else values, self._at(key), self.file, self.notes)
        self._parts.append(block)
        return block

    def move(self, target: dict[str, Any], **names: str) -> None:
        """Put values into `target`, where the key `name` of the file is called `names[name]`."""
        for key, name in names.items():
            if key in self:
                target[name] = self.take(key)

    def keep(self, target: dict[str, Any], *keys: str) -> None:
        """Put values into `target` under the same keys."""
        self.move(target, **{key: key for key in keys})

    def path_of(self, key: str) -> str | None:
        """The path under a key; where it is relative and not here, that beside the file."""
        value = self.take(key)
        return None if value is None else self.locate(key, value)

    def locate(self, key: str, value: object) -> str:
        if not isinstance(value, str):
            raise UserError(f"{self._at(key)} must be a path, not {value!r}.", where=str(self.file))
        beside = self.file.resolve().parent.parent / value
        return str(beside) if not Path(value).exists() and beside.exists() else value

    def drop(self, key: str, reason: str) -> None:
        """A key that has no meaning here: say so if the file has it."""
        if key in self:
            self.take(key)
            self.notes.add(self._at(key), reason)

    def expect(self, key: str, usual: Sequence[Any], reason: str) -> None:
        """A key whose usual values say what is done here anyway; another one is said to be lost."""
        self._asked.append(key)
        if key in self and self._values[key] in usual:
            self.take(key)
        else:
            self.drop(key, reason)

    def finish(self) -> None:
        """Raise for what is left.

        Raises:
            UserError: an unknown key.
        """
        for part in self._parts:
            part.finish()
        for key in self._values:
            known = [name for name in self._asked if name not in self._values]
            raise UserError(
                f"Unknown key {self._at(key)!r}.",
                where=str(self.file),
                fix=nearest(key, known) if known else "Leave it out.",
            )

    def _at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key
