"""Counts against closed forms that can be checked by hand, for every kind of product."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from repro.errors import ModelError
from repro.measure.macs import UncountedOperatorError, count, einsum_macs, second_count, total


class Apply(nn.Module):
    """Makes a function of one tensor a module."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function = function
        self.kept = nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x, *self.kept)


def both(module, example):
    return count(module, example).total("macs"), second_count(module, example)


@given(
    channels=st.integers(1, 4),
    out=st.integers(1, 4),
    groups=st.integers(1, 3),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    size=st.integers(6, 11),
)
@settings(max_examples=25, deadline=None)
def test_convolution(channels, out, groups, kernel, stride, padding, size):
    layer = nn.Conv2d(channels * groups, out * groups, kernel, stride, padding, groups=groups)
    side = (size + 2 * padding - kernel) // stride + 1
    expected = side * side * out * groups * channels * kernel * kernel
    assert both(layer, torch.zeros(1, channels * groups, size, size)) == (expected, expected)


@pytest.mark.parametrize(("padding", "side"), [("same", 9), ("valid", 7)])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_with_padding_by_name(padding, side, groups):
    layer = nn.Conv2d(4, 6, 3, padding=padding, groups=groups)
    expected = side * side * 6 * (4 // groups) * 9
    example = torch.zeros(2, 4, 9, 9)
    assert both(layer, example) == (2 * expected, 2 * expected)
    assert count(layer, example).total("fvcore") == 0


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_recurrence(kind, gates, bidirectional, layers):
    module = kind(6, 5, num_layers=layers, bidirectional=bidirectional, batch_first=True)
    directions = 1 + bidirectional
    widths = [6, *[5 * directions] * (layers - 1)]
    expected = 2 * 7 * sum(directions * gates * 5 * (width + 5) for width in widths)
    assert both(Apply(lambda x, rnn: rnn(x)[0], module), torch.zeros(2, 7, 6)) == (expected, expected)
    assert second_count(module.to("meta"), torch.zeros(2, 7, 6, device="meta")) == expected


class ClassToken(nn.Module):
    """Gives a module a parameter that asks for a gradient."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.token.expand(x.shape[0], -1, -1)) + x.mean()


def test_a_parameter_that_is_a_modules_input():
    model = ClassToken()
    assert both(model, torch.zeros(2, 3, 4, 4)) == (24, 24)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution_works_on_every_input_pixel(groups):
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=groups)
    expected = 5 * 7 * 4 * (6 // groups) * 9
    assert both(layer, torch.zeros(1, 4, 5, 7)) == (expected, expected)


@pytest.mark.parametrize("shape", [(1, 8), (1, 5, 8), (2, 3, 5, 8)])
def test_linear(shape):
    expected = torch.zeros(shape).numel() // 8 * 8 * 16
    assert both(nn.Linear(8, 16), torch.zeros(shape)) == (expected, expected)


def attention(x):
    return F.scaled_dot_product_attention(x, x, x)


def attention_by_hand(x):
    return (x @ x.transpose(-2, -1)).softmax(-1) @ x


@pytest.mark.parametrize("function", [attention, attention_by_hand])
def test_attention_is_counted_whatever_kernel_runs(function):
    expected = 2 * 3 * 10 * 10 * 8 * 2
    counted = count(Apply(function), torch.zeros(2, 3, 10, 8))
    assert counted.total("macs") == expected
    assert counted.total("macs-attention") == 0
    assert second_count(Apply(function), torch.zeros(2, 3, 10, 8)) == expected
    assert second_count(Apply(function), torch.zeros(2, 3, 10, 8, device="meta")) == expected


def test_attention_with_fewer_values_than_queries():
    def cross(x):
        return F.scaled_dot_product_attention(x, x[..., :4, :], x[..., :4, :5])

    expected = 10 * 4 * 8 + 10 * 4 * 5
    assert both(Apply(cross), torch.zeros(1, 1, 10, 8)) == (expected, expected)


def test_fvcore_alone_drops_fused_attention():
    counted = count(Apply(attention), torch.zeros(2, 3, 10, 8))
    assert counted.total("fvcore") == 0


def test_multihead_attention_is_not_hidden_by_its_fast_path():
    layer = nn.MultiheadAttention(16, 4, batch_first=True)
    example = torch.zeros(1, 9, 16)
    expected = 9 * 16 * 48 + 9 * 16 * 16 + 2 * 4 * 9 * 9 * 4
    assert both(Apply(lambda x, a: a(x, x, x)[0], layer), example) == (expected, expected)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ((3, 4), (4, 5), 60),
        ((2, 3, 4), (4, 5), 120),
        ((2, 3, 4), (2, 4, 5), 120),
        ((1, 3, 4), (7, 4, 5), 420),  # the smaller operand is broadcast
        ((4,), (4, 5), 20),
        ((3, 4), (4,), 12),
    ],
)
def test_matmul(left, right, expected):
    other = torch.zeros(right)
    counted = count(Apply(lambda x: torch.matmul(x, other)), torch.zeros(left))
    assert counted.total("macs") == expected


def test_baddbmm_and_bmm():
    other, bias = torch.zeros(2, 4, 5), torch.zeros(2, 3, 5)
    assert both(Apply(lambda x: torch.baddbmm(bias, x, other)), torch.zeros(2, 3, 4)) == (120, 120)
    assert both(Apply(lambda x: torch.bmm(x, other)), torch.zeros(2, 3, 4)) == (120, 120)


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("ij,jk->ik", [(3, 4), (4, 5)], 60),
        ("bhid,bhjd->bhij", [(2, 3, 5, 4), (2, 3, 6, 4)], 2 * 3 * 5 * 6 * 4),
        ("nchw,kc->nkhw", [(1, 8, 5, 5), (16, 8)], 25 * 128),
        ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)], 120),
        ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 5)], 120),
        ("ij,jk", [(3, 4), (4, 5)], 60),
        ("i,j->ij", [(3,), (4,)], 12),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)], 2 * 3 * 4 + 2 * 4 * 5),
        ("bi,bi->b", [(2, 7), (1, 7)], 14),
    ],
)
def test_einsum(equation, shapes, expected):
    assert einsum_macs(equation, [list(shape) for shape in shapes]) == expected
    others = [torch.zeros(shape) for shape in shapes[1:]]
    counted = count(Apply(lambda x: torch.einsum(equation, x, *others)), torch.zeros(shapes[0]))
    assert counted.total("macs") == expected


def test_einsum_of_the_wrong_shapes_is_refused():
    with pytest.raises(ModelError, match="index j"):
        einsum_macs("ij,jk->ik", [[2, 3], [4, 5]])
    with pytest.raises(ModelError, match="operands"):
        einsum_macs("ij,jk->ik", [[2, 3]])


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: torch.fft.rfft2(x), "fft_rfft2"),
        (lambda x: torch.cdist(x, x), "cdist"),
        (lambda x: torch.linalg.inv(x), "linalg_inv"),
    ],
)
def test_a_heavy_operator_is_never_silently_left_out(function, name):
    with pytest.raises(UncountedOperatorError, match=name):
        count(Apply(function), torch.zeros(1, 4, 4) + torch.eye(4))


def test_light_operators_are_let_through():
    def light(x):
        y = F.hardswish(F.relu6(F.gelu(x.sigmoid() * x), inplace=True)).softmax(-1)
        y = F.avg_pool2d(F.pad(y, (1, 1, 1, 1)), 2).amax(1, keepdim=True)
        return torch.cat([y.mean((2, 3)), F.pixel_shuffle(x, 2).flatten(1)], 1)

    assert count(Apply(light), torch.zeros(1, 4, 6, 6)).total("macs") == 0


def test_conventions_differ_by_norms_and_attention():
    operators = {"conv": 100, "linear": 10, "matmul": 5, "scaled_dot_product_attention": 7, "batch_norm": 3}
    assert total(operators, "macs") == 122
    assert total(operators, "macs-attention") == 110
    assert total(operators, "macs+norms") == 125
    assert total(operators, "fvcore") == 118


def test_a_module_called_twice_counts_twice():
    layer = nn.Linear(4, 4)
    assert both(Apply(lambda x, a: a(a(x)), layer), torch.zeros(1, 4)) == (32, 32)
