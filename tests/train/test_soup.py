"""A soup is the mean of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmembed.errors import SpecError
from mmembed.train.soup import soup


def model(value, width=3):
    made = nn.Sequential(nn.Linear(width, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        for weight in made.parameters():
            weight.fill_(value)
    return made


def test_a_soup_is_the_mean_of_weights_by_their_shares():
    mean = soup([model(1.0), model(4.0)])
    assert mean["0.weight"].unique().tolist() == [2.5]
    assert soup([model(1.0), model(4.0)], [2, 1])["1.bias"].unique().tolist() == [2.0]
    one = model(3.0).bfloat16()
    assert all(torch.equal(value, one.state_dict()[name]) for name, value in soup([one]).items())
    assert soup([one, one])["0.weight"].dtype == torch.bfloat16
    model(0.0).load_state_dict(mean)


def test_a_soup_of_other_weights_or_shares_is_refused():
    with pytest.raises(SpecError, match=r"model 1 has other weights than the first: 0\.weight"):
        soup([model(1.0), model(1.0, width=4)])
    for shares in ([1.0], [1.0, -1.0]):
        with pytest.raises(SpecError, match="give each model a share"):
            soup([model(1.0), model(2.0)], shares)
