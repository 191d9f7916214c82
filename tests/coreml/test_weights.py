"""Random weights under which nothing is hidden and nothing blows up."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from repro.coreml.check import TOLERANCE
from repro.coreml.weights import randomise, sample_inputs
from tests.coreml.nets import SIZE, Net


def _outputs(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return net(x)


def test_the_seed_decides() -> None:
    one, same, other = (randomise(Net(), input_size=SIZE, seed=seed) for seed in (3, 3, 4))
    for key, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[key])
    assert not torch.equal(one.head.weight, other.head.weight)
    assert not one.training


def _visible(net: nn.Module, x: torch.Tensor, name: str) -> float:
    """How far the outputs move when one parameter or statistic is put back to what hides it."""
    changed = copy.deepcopy(net)
    value = changed.state_dict()[name]
    value.fill_(1.0 if name.endswith(("running_var", "norm.weight", "1.weight")) else 0.0)
    want = _outputs(net, x)
    return float((_outputs(changed, x) - want).abs().max() / (want - want.mean(0)).abs().max())


def test_every_parameter_and_statistic_shows() -> None:
    net = randomise(Net(), input_size=SIZE)
    x = sample_inputs(SIZE, count=3, seed=9)
    names = [name for name in net.state_dict() if not name.endswith("num_batches_tracked")]  # counts nothing here
    hidden = [name for name in names if _visible(net, x, name) <= 10 * TOLERANCE]
    assert hidden == []
    fresh = Net().eval()
    assert "block.mix.0.weight" in [name for name in names if _visible(fresh, x, name) <= TOLERANCE]


def test_the_inputs_differ_and_are_of_deviation_one() -> None:
    x = sample_inputs((3, 64, 64), count=8, seed=0)
    assert x.shape == (8, 3, 64, 64)
    assert 0.7 < float(x.std()) < 1.3
    assert not torch.equal(x[0], x[1])
    assert torch.equal(x[:4], sample_inputs((3, 64, 64), count=8, seed=0)[:4])


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit", "test_byobnet"])
def test_activations_stay_near_one(name: str) -> None:
    net = timm.create_model(name)
    size = net.default_cfg["input_size"]
    randomise(net, input_size=size)
    largest = []
    for child in net.modules():
        child.register_forward_hook(
            lambda _module, _inputs, output: (
                largest.append(float(output.abs().max())) if isinstance(output, torch.Tensor) else None
            )
        )
    outputs = _outputs(net, sample_inputs(size, count=3, seed=5))
    assert max(largest) < 200
    assert 0.2 < float(outputs.std()) < 5
    assert float((outputs - outputs.mean(0)).std()) > 0.02
