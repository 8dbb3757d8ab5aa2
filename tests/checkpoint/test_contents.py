"""Weights that do not fit are named in a line, however many they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from s3prl_mtl.checkpoint.contents import encoder_weights, load_strictly
from s3prl_mtl.errors import UserError


def test_the_first_names_of_each_kind_are_shown_and_the_others_counted() -> None:
    module = nn.Sequential(*(nn.Linear(2, 2) for _ in range(30)))
    weights = {f"other.{index}": torch.zeros(1) for index in range(5)}
    weights |= {"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(2)}
    with pytest.raises(UserError) as caught:
        load_strictly(module, weights, "the head", "-i")
    assert str(caught.value).startswith(
        "The weights do not fit the head: missing: 1.weight, 1.bias, 2.weight and 55 more; "
        "left over: other.0, other.1, other.2 and 2 more; "
        "of another shape: 0.weight of shape (3, 2) instead of (2, 2). Where: -i."
    )


def test_a_value_that_is_no_tensor_is_named() -> None:
    with pytest.raises(UserError, match=r"bias of shape int instead of \(2,\)"):
        load_strictly(nn.Linear(2, 2), {"weight": torch.zeros(2, 2), "bias": 5}, "it", "-i")


def test_the_prefix_of_s3prl_stays_where_two_parameters_would_have_one_name() -> None:
    both = {"model.a": torch.zeros(1), "a": torch.ones(1)}
    assert encoder_weights({"Upstream": both}) == both
    one = {"model.a": torch.zeros(1), "b": torch.ones(1)}
    assert set(encoder_weights({"Upstream": one})) == {"a", "b"}
