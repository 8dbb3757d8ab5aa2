"""Read a mapping of a config key by key, so that no key is ignored silently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s3prl_mtl.errors import UserError, nearest


class Notes:
    """Collect the keys that have no meaning here, grouped by reason."""

    def __init__(self) -> None:
        self._by_reason: dict[str, list[str]] = {}

    def add(self, key: str, reason: str) -> None:
        self._by_reason.setdefault(reason, []).append(key)

    def lines(self) -> list[str]:
        return [f"{', '.join(keys)}: {reason}" for reason, keys in self._by_reason.items()]


class BranchBlock:
    """A mapping of a config file; a key that is neither taken nor dropped is unknown.

    Args:
        values: the mapping.
        path: its dotted key, for messages.
        file: the config file. Relative paths in it may be relative to the parent of its folder:
            s3prl runs in the folder that holds `downstream/`.
        notes: collects the keys without a meaning.

    Raises:
        UserError: `values` is not a mapping.
    """

    def __init__(self, values: object, path: str, file: Path, notes: Notes) -> None:
        if not isinstance(values, Mapping):
            raise UserError(
                f"{path} must be a mapping, not {values!r}.",
                where=f"{path} in {file}",
                code="wrong-type",
            )
        self._values = {str(key): value for key, value in values.items()}
        self._asked = list(self._values)
        self._parts: list[BranchBlock] = []
        self.path = path
        self.file = file
        self.notes = notes

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def left(self) -> list[str]:
        """The keys that were neither taken nor dropped so far."""
        return list(self._values)

    def take(self, key: str, default: Any = None) -> Any:
        """Remove and return the value of a key."""
        self._asked.append(key)
        return self._values.pop(key, default)

    def part(self, key: str) -> BranchBlock:
        """Remove and return the mapping of a key; an empty one if the key is absent."""
        values = self.take(key)
        block = BranchBlock({} if values is None else values, self._at(key), self.file, self.notes)
        self._parts.append(block)
        return block

    def move(self, target: dict[str, Any], **names: str) -> None:
        """Move the value of each key of `names` that is present to `target[names[key]]`."""
        for key, name in names.items():
            if key in self:
                target[name] = self.take(key)

    def keep(self, target: dict[str, Any], *keys: str) -> None:
        """Move the values of the keys that are present to `target`, under the same keys."""
        self.move(target, **{key: key for key in keys})

    def path_of(self, key: str) -> str | None:
        """Remove and return the path of a key, located by `locate`; None if the key is absent."""
        value = self.take(key)
        return None if value is None else self.locate(key, value)

    def locate(self, key: str, value: object) -> str:
        """A path of the file, relative to the working folder or else to the parent of the file's.

        Raises:
            UserError: the value is not a string.
        """
        if not isinstance(value, str):
            raise UserError(
                f"{self._at(key)} must be a path, not {value!r}.",
                where=f"{self._at(key)} in {self.file}",
                code="wrong-type",
            )
        beside = self.file.resolve().parent.parent / value
        return str(beside) if not Path(value).exists() and beside.exists() else value

    def drop(self, key: str, reason: str) -> None:
        """Remove a key that has no meaning here, and note it if it is present."""
        if key in self:
            self.take(key)
            self.notes.add(self._at(key), reason)

    def expect(self, key: str, usual: Sequence[Any], reason: str) -> None:
        """Remove a key with a fixed meaning here: note any value but the `usual` ones."""
        self._asked.append(key)
        if key in self and self._values[key] in usual:
            self.take(key)
        else:
            self.drop(key, reason)

    def finish(self) -> None:
        """Check that no key is left.

        Raises:
            UserError: an unknown key, here or in a part.
        """
        for part in self._parts:
            part.finish()
        for key in self._values:
            known = [name for name in self._asked if name not in self._values]
            raise UserError(
                f"Unknown key {self._at(key)!r}.",
                where=f"{self._at(key)} in {self.file}",
                fix=nearest(key, known) if known else "Leave it out.",
                code="unknown-key",
            )

    def _at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key
