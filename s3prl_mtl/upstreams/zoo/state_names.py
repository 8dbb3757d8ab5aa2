"""Names of parameters in state dicts that differ from those of the modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


def strip_state_prefixes(module: nn.Module, prefixes: Sequence[str]) -> None:
    """Strip prefixes from the names in the state dict of a module.

    The state dict then has the names that the wrapped model gives its parameters;
    `load_state_dict` accepts these and the full names.

    Args:
        module: changed in place; it has its parameters already.
        prefixes: such as ``expert.model.`` and ``expert.``; the first that fits is stripped.
    """
    full_names = list(module.state_dict())
    short_names = {name: _strip(name, prefixes) for name in full_names}
    if len(set(short_names.values())) < len(full_names):
        # Two names became one: do not strip the first prefix.
        short_names = {name: _strip(name, prefixes[1:]) for name in full_names}

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


def _strip(name: str, prefixes: Sequence[str]) -> str:
    for prefix in prefixes:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name
