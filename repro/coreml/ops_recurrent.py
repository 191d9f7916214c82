"""Recurrent layers over sequences ``x`` (S, B, I): LSTM and the plain recurrence.

Definitions: coremltools' ``iOS15/recurrent.py``. What they leave open is refused: where peepholes and clipping act
(they are no parameters here), and in which order a reversed layer gives the states of all steps. GRU is not here:
coremltools itself converts it to a loop.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from repro.coreml.registry import op

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "linear": lambda x: x,
}


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if name not in _ACTIVATIONS:
        raise ValueError(f"unknown activation {name}")
    return _ACTIVATIONS[name]


def _backward(direction: str, output_sequence: bool) -> bool:
    if direction == "reverse" and output_sequence:
        raise ValueError("the order in which a reversed layer gives all its states is not defined")
    if direction not in ("forward", "reverse"):
        raise ValueError(f"unknown direction {direction}")
    return direction == "reverse"


def _order(steps: int, backward: bool) -> range:
    return range(steps - 1, -1, -1) if backward else range(steps)


@op(tensors="x initial_h initial_c weight_ih weight_hh bias weight_ih_back weight_hh_back bias_back")
def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (4H, I) and (4H, H) in the order input, forget, output, cell; states (B, H), or (B, 2H) both ways.

    Gives the hidden states of every step in the sequence's order, or of the last one alone, and the last states.
    """
    gate, cell, out = (_activation(name) for name in (recurrent_activation, cell_activation, activation))
    size = weight_hh.shape[1]
    if direction != "bidirectional":
        ways = [(weight_ih, weight_hh, bias, _backward(direction, output_sequence))]
    elif weight_ih_back is not None and weight_hh_back is not None:
        ways = [(weight_ih, weight_hh, bias, False), (weight_ih_back, weight_hh_back, bias_back, True)]
    else:
        raise ValueError("a bidirectional layer without weights for the way back")
    sequences, hidden, cells = [], [], []
    for way, (from_input, from_hidden, shift, backward) in enumerate(ways):
        h, c = (state[:, way * size : (way + 1) * size] for state in (initial_h, initial_c))
        given = F.linear(x, from_input, shift)
        states: list[Tensor] = []
        for step in _order(x.shape[0], backward):
            i, f, o, z = (given[step] + F.linear(h, from_hidden)).split(size, 1)
            c = gate(f) * c + gate(i) * cell(z)
            h = gate(o) * out(c)
            states.append(h)
        sequences.append(torch.stack(states[::-1] if backward else states))
        hidden.append(h)
        cells.append(c)
    last = torch.cat(hidden, 1)
    return torch.cat(sequences, 2) if output_sequence else last[None], last, torch.cat(cells, 1)


@op(tensors="x initial_h weight_ih weight_hh bias")
def rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
) -> tuple[Tensor, Tensor]:
    """Weights (H, I) and (H, H), state (B, H); gives what ``lstm`` gives, without cells."""
    act, backward, h = _activation(activation), _backward(direction, output_sequence), initial_h
    given = F.linear(x, weight_ih, bias)
    states: list[Tensor] = []
    for step in _order(x.shape[0], backward):
        h = act(given[step] + F.linear(h, weight_hh))
        states.append(h)
    return torch.stack(states) if output_sequence else h[None], h
