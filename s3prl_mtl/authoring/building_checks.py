"""Lines of the contract about building an expert: its arguments, its label space, its settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from s3prl_mtl.authoring.harness import NeedsData, Subject
from s3prl_mtl.authoring.verdicts import Broken, Check, NotApplicable
from s3prl_mtl.errors import UserError

MISSPELT = "zz_misspelt"


def builds(subject: Subject) -> str:
    expert = subject.build()
    if not isinstance(expert, nn.Module):
        raise Broken(f"It is no torch.nn.Module but a {type(expert).__name__}.")
    count = sum(parameter.numel() for parameter in expert.parameters())
    return f"built with {count} parameters."


def builds_from_labels(subject: Subject) -> str:
    expert = subject.build()
    labels = getattr(expert, "labels", None)
    if labels is None:
        raise NotApplicable(
            "it has no `labels`, so it can be evaluated and used only where its corpus is."
        )
    try:
        plain = json.loads(json.dumps(labels))
    except (TypeError, ValueError) as error:
        raise Broken(f"`labels` is not plain JSON: {error}.") from error
    if plain != labels:
        raise Broken("`labels` is not the same after it was written as JSON and read again.")
    try:
        again = subject.build(subject.without_corpus(), labels=plain)
    except Exception as error:
        raise Broken(f"without its corpus it is not built: {error}") from error
    shapes = [{n: tuple(p.shape) for n, p in e.state_dict().items()} for e in (expert, again)]
    if shapes[0] != shapes[1]:
        odd = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))
        raise Broken(f"built from its label space it has other parameters: {odd[0][0]}.")
    return "built from its label space where there is no corpus."


def refuses_misspelt_settings(subject: Subject) -> str:
    settings = subject.config.tasks[subject.name].downstream_expert
    places = list(_mappings(settings, f"{subject.name}.downstream_expert"))
    # An empty mapping says that whoever reads it knows its keys: as for a head not selected.
    closed = [place for place, holds_any in places if holds_any] or [places[0][0]]
    for place in closed:
        if not _refuses(subject, f"{place}.{MISSPELT}=1"):
            raise Broken(f"{place}.{MISSPELT} is taken without a word.")
    left_open = [_relative(place) for place, _ in places if place not in closed]
    also = f"; {', '.join(left_open)} is left open by `config.yaml`" if left_open else ""
    return f"refused in {', '.join(map(_relative, closed))}{also}."


def _refuses(subject: Subject, override: str) -> bool:
    try:
        config = subject.configured(override)
    except UserError:
        return True
    try:
        subject.build(config)
    except NeedsData:
        raise
    except Exception:
        return True
    return False


def _relative(place: str) -> str:
    return place.partition(".")[2]


def _mappings(settings: Mapping[str, Any], path: str) -> Iterator[tuple[str, bool]]:
    """The settings that hold settings, and whether there are any."""
    yield path, bool(settings)
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _mappings(value, f"{path}.{key}")


BUILDING_CHECKS: dict[int, Check] = {
    1: builds,
    2: builds_from_labels,
    3: refuses_misspelt_settings,
}
