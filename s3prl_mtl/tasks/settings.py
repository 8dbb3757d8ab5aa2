"""Checked access to the settings and the label space of an expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from s3prl_mtl.errors import UserError


class CheckedSettings:
    """Reads `settings` and `labels` of an expert; errors name the key."""

    name: ClassVar[str]
    settings: dict[str, Any]
    labels: dict[str, Any]

    def setting(self, *keys: str) -> Any:
        """The value under nested keys, such as `setting("modelrc", "projector_dim")`.

        Raises:
            UserError: it is missing or null.
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
        """A setting that is a positive integer.

        Raises:
            UserError: it is missing, or not a positive integer.
        """
        value = self.setting(*keys)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(
                f"A size of {self.name} must be a positive integer, not {value!r}.",
                where=self.key_path(*keys),
                code="invalid-value",
            )
        return value

    def choice_setting(self, *keys: str, choices: Sequence[str]) -> str:
        """A setting that is one of `choices`.

        Raises:
            UserError: it is missing, or not among them.
        """
        value = self.setting(*keys)
        if value not in choices:
            raise UserError(
                f"{value!r} is not a choice of {self.name} here.",
                where=self.key_path(*keys),
                fix=f"Choose {' or '.join(choices)}.",
                code="invalid-value",
            )
        return str(value)

    def key_path(self, *keys: str) -> str:
        """The path of a setting in the config, such as `ks.downstream_expert.modelrc`."""
        return ".".join((self.name, "downstream_expert", *keys))

    def label_list(self, key: str) -> list[str]:
        """A list of the label space.

        Raises:
            UserError: the label space has no such list, or an empty one.
        """
        names = self.labels.get(key)
        if not isinstance(names, list | tuple) or not names:
            raise UserError(
                f"The label space of {self.name} has no {key!r}.",
                where="the checkpoint's labels, or the corpus they were read from",
                fix=f"`{key}` must be a non-empty list of strings.",
                code="label-unknown",
            )
        return list(names)
