"""Recurrent layers over sequences ``x`` (S, B, I): LSTM and the plain recurrence, as torch computes them.

Definitions: coremltools' ``iOS15/recurrent.py``. Refused is what they leave open (where peepholes and clipping act, and
in which order a reversed layer gives the states of all steps), and what no converter writes: other activations than
torch's. GRU is not here: coremltools itself converts it to a loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from repro.coreml.registry import op


def _weights(weight_ih: Tensor, weight_hh: Tensor, bias: Tensor | None) -> list[Tensor]:
    """As torch takes them, with the bias that MIL has once."""
    shift = weight_ih.new_zeros(weight_ih.shape[0]) if bias is None else bias
    return [weight_ih, weight_hh, shift, torch.zeros_like(shift)]


def _in_torch_order(weights: Sequence[Tensor]) -> list[Tensor]:
    """MIL's gates are input, forget, output, cell; torch's input, forget, cell, output."""
    gates = [weight.chunk(4) for weight in weights]
    return [torch.cat([i, f, z, o]) for i, f, o, z in gates]


def _backward(direction: str, output_sequence: bool) -> bool:
    if direction == "reverse" and output_sequence:
        raise ValueError("the order in which a reversed layer gives all its states is not defined")
    if direction not in ("forward", "reverse"):
        raise ValueError(f"unknown direction {direction}")
    return direction == "reverse"


def _usual(given: str, usual: Sequence[str]) -> None:
    if given not in usual:
        raise ValueError(f"unknown activation {given}")


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
    _usual(recurrent_activation, ("sigmoid",))
    _usual(cell_activation, ("tanh",))
    _usual(activation, ("tanh",))
    weights, both = _in_torch_order(_weights(weight_ih, weight_hh, bias)), direction == "bidirectional"
    if both:
        if weight_ih_back is None or weight_hh_back is None:
            raise ValueError("a bidirectional layer without weights for the way back")
        weights += _in_torch_order(_weights(weight_ih_back, weight_hh_back, bias_back))
    elif _backward(direction, output_sequence):
        x = x.flip(0)
    start = [torch.stack(state.chunk(1 + both, 1)) for state in (initial_h, initial_c)]
    states, *last = torch.lstm(x, start, weights, True, 1, 0.0, False, both, False)
    hidden, cell = (torch.cat(list(state), 1) for state in last)
    return states if output_sequence else hidden[None], hidden, cell


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
    _usual(activation, ("tanh", "relu"))
    x = x.flip(0) if _backward(direction, output_sequence) else x
    run = torch.rnn_tanh if activation == "tanh" else torch.rnn_relu
    states, last = run(x, initial_h[None], _weights(weight_ih, weight_hh, bias), True, 1, 0.0, False, False, False)
    return states if output_sequence else last, last[0]
