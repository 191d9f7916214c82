"""Recurrent layers, against PyTorch's own with the gates put into its order."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from tests.coreml.programs import Case, floats

S, B, I, H = 5, 2, 3, 4  # noqa: E741 - the definition's names
_WEIGHTS = (floats(4 * H, I, seed=1), floats(4 * H, H, seed=2), floats(4 * H, seed=3))
_BACK = (floats(4 * H, I, seed=4), floats(4 * H, H, seed=5), floats(4 * H, seed=6))
_PLAIN = (floats(H, I, seed=1), floats(H, H, seed=2), floats(H, seed=3))


def _torch_order(weights: np.ndarray) -> torch.Tensor:
    """MIL has input, forget, output, cell; PyTorch input, forget, cell, output."""
    i, f, o, z = np.split(weights, 4)
    return torch.from_numpy(np.concatenate([i, f, z, o]))


def _fill(layer: nn.RNNBase, suffix: str, tensors: tuple[torch.Tensor, ...]) -> None:
    from_input, from_hidden, bias = tensors
    for name, value in (("weight_ih", from_input), ("weight_hh", from_hidden), ("bias_ih", bias)):
        getattr(layer, f"{name}_l0{suffix}").copy_(value)
    getattr(layer, f"bias_hh_l0{suffix}").zero_()


def _lstm(direction: str, whole: bool):
    def want(x: np.ndarray, h: np.ndarray, c: np.ndarray) -> list[np.ndarray]:
        both = direction == "bidirectional"
        layer = nn.LSTM(I, H, bidirectional=both)
        with torch.no_grad():
            _fill(layer, "", tuple(_torch_order(value) for value in _WEIGHTS))
            if both:
                _fill(layer, "_reverse", tuple(_torch_order(value) for value in _BACK))
            start = tuple(torch.from_numpy(np.stack(np.split(state, 1 + both, 1))) for state in (h, c))
            given = torch.from_numpy(x)
            out, last = layer(given.flip(0) if direction == "reverse" else given, start)
        states = [np.concatenate(list(state.numpy()), 1) for state in last]
        return [out.numpy() if whole else states[0][None], *states]

    return want


def _rnn(direction: str, activation: str, whole: bool):
    def want(x: np.ndarray, h: np.ndarray) -> list[np.ndarray]:
        layer = nn.RNN(I, H, nonlinearity=activation)
        with torch.no_grad():
            _fill(layer, "", tuple(torch.from_numpy(value) for value in _PLAIN))
            given = torch.from_numpy(x)
            out, last = layer(given.flip(0) if direction == "reverse" else given, torch.from_numpy(h)[None])
        return [out.numpy() if whole else last.numpy(), last[0].numpy()]

    return want


def _case(direction: str, whole: bool) -> Case:
    back = dict(zip(("weight_ih_back", "weight_hh_back", "bias_back"), _BACK, strict=True))
    ways = 2 if direction == "bidirectional" else 1
    return Case(
        op="lstm",
        note=f"{direction}{', whole' if whole else ''}",
        inputs=(floats(S, B, I), floats(B, ways * H, seed=7), floats(B, ways * H, seed=8)),
        build=lambda mb, x, h, c: mb.lstm(
            x=x,
            initial_h=h,
            initial_c=c,
            **dict(zip(("weight_ih", "weight_hh", "bias"), _WEIGHTS, strict=True)),
            **(back if ways == 2 else {}),
            direction=direction,
            output_sequence=whole,
        ),
        want=_lstm(direction, whole),
    )


CASES = [
    *(_case(direction, whole) for direction in ("forward", "bidirectional") for whole in (False, True)),
    _case("reverse", False),
    *(
        Case(
            op="rnn",
            note=f"{direction}, {activation}{', whole' if whole else ''}",
            inputs=(floats(S, B, I), floats(B, H, seed=7)),
            build=lambda mb, x, h, direction=direction, activation=activation, whole=whole: mb.rnn(
                x=x,
                initial_h=h,
                **dict(zip(("weight_ih", "weight_hh", "bias"), _PLAIN, strict=True)),
                direction=direction,
                activation=activation,
                output_sequence=whole,
            ),
            want=_rnn(direction, activation, whole),
        )
        for direction, activation, whole in (
            ("forward", "tanh", True),
            ("forward", "relu", False),
            ("reverse", "tanh", False),
        )
    ),
]
