"""State dicts under other names than the modules have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


def rename_state(module: nn.Module, prefixes: Sequence[str]) -> None:
    """Leave the first of these prefixes that a parameter's name has out of the state dict.

    Checkpoints then hold the names that the wrapped model gives its parameters. Loading takes
    both, the short names and the full ones.

    Args:
        module: whose ``state_dict`` and ``load_state_dict`` change; its parameters are there.
        prefixes: such as ``expert.model.`` and ``expert.``, tried in this order.
    """
    full_names = list(module.state_dict())
    short_names = {name: _shorten(name, prefixes) for name in full_names}
    if len(set(short_names.values())) < len(full_names):
        # Two would become one: the longest prefix stays where it is.
        short_names = {name: _shorten(name, prefixes[1:]) for name in full_names}

    def shorten(_module: nn.Module, state: Any, prefix: str, _metadata: Any) -> None:
        for full, short in short_names.items():
            if prefix + full in state:
                state[prefix + short] = state.pop(prefix + full)

    def lengthen(_module: nn.Module, state: Any, prefix: str, *_rest: Any) -> None:
        for full, short in short_names.items():
            if prefix + short in state and prefix + full not in state:
                state[prefix + full] = state.pop(prefix + short)

    module.register_state_dict_post_hook(shorten)
    module.register_load_state_dict_pre_hook(lengthen)


def _shorten(name: str, prefixes: Sequence[str]) -> str:
    for prefix in prefixes:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name
