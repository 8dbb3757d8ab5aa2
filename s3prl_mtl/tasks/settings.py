"""How an expert reads its settings and its label space: what is missing or wrong is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from s3prl_mtl.errors import UserError


class CheckedSettings:
    """Access to `settings` and `labels` of an expert that never fails without saying where."""

    name: ClassVar[str]
    settings: dict[str, Any]
    labels: dict[str, Any]

    def setting(self, *keys: str) -> Any:
        """What the settings hold under keys, such as `setting("modelrc", "projector_dim")`.

        Raises:
            UserError: it is not there.
        """
        value: Any = self.settings
        for depth, key in enumerate(keys, 1):
            if not isinstance(value, Mapping) or value.get(key) is None:
                raise UserError(
                    f"A setting of {self.name} is missing.",
                    where=self.key_path(*keys[:depth]),
                    code="missing-option",
                )
            value = value[key]
        return value

    def size_setting(self, *keys: str) -> int:
        """A setting that is a whole number above 0.

        Raises:
            UserError: it is not there, or something else.
        """
        value = self.setting(*keys)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(
                f"A size of {self.name} must be a whole number above 0, not {value!r}.",
                where=self.key_path(*keys),
                code="invalid-value",
            )
        return value

    def choice_setting(self, *keys: str, choices: Sequence[str]) -> str:
        """A setting that is one of a few names.

        Raises:
            UserError: it is not there, or another name.
        """
        value = self.setting(*keys)
        if value not in choices:
            raise UserError(
                f"{self.name} cannot have {value!r} here.",
                where=self.key_path(*keys),
                fix=f"It is {' or '.join(choices)}.",
                code="invalid-value",
            )
        return str(value)

    def key_path(self, *keys: str) -> str:
        """What the config calls a setting of this task."""
        return ".".join((self.name, "downstream_expert", *keys))

    def label_list(self, key: str) -> list[str]:
        """A list of the label space.

        Raises:
            UserError: the label space lacks it, or it is empty.
        """
        names = self.labels.get(key)
        if not isinstance(names, list | tuple) or not names:
            raise UserError(
                f"The label space of {self.name} has no {key!r}.",
                where="the checkpoint's labels, or the corpus they were read from",
                fix=f"`{key}` is a list of strings that is not empty.",
                code="label-unknown",
            )
        return list(names)
