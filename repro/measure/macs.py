"""Multiply-accumulate operations, by operator, with fvcore, and checked against torch's own counter.

A multiply-add is one operation, as in fvcore. Every operator of the traced graph is either counted, or known to be
light (elementwise, a move of data, a reduction), or the count is refused: no operator is left out in silence.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from repro.errors import ModelError

# Products of an activation and weights.
_WEIGHTED = ("conv", "convolution_mode", "linear", "addmm", "mm", "mv", "recurrent")
# Products of two activations: attention's.
_ACTIVATIONS = ("matmul", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention", "dot")
# Products of either kind that fvcore has no handle for.
_UNKNOWN_TO_FVCORE = ("scaled_dot_product_attention", "baddbmm", "convolution_mode", "recurrent", "mv", "dot")
# What fvcore counts beside products: normalisation, pooling and resampling.
_NORMS = ("batch_norm", "group_norm", "layer_norm", "instance_norm")
_RESAMPLING = ("adaptive_avg_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "grid_sampler")

# Operators whose work is at most a few operations an element, and which torch does not tag as pointwise:
# reductions, pooling windows, sorting, shape arithmetic and moves of data.
_LIGHT = frozenset(
    """
    avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d max_pool2d_with_indices adaptive_avg_pool1d
    adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d lp_pool2d
    softmax _softmax log_softmax _log_softmax logsumexp sum mean var std var_mean std_mean norm linalg_vector_norm
    frobenius_norm amax amin aminmax max min argmax argmin prod any all cumsum cumprod topk sort argsort count_nonzero
    rms_norm _fused_rms_norm local_response_norm normalize renorm
    pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle pad constant_pad_nd reflection_pad1d
    reflection_pad2d replication_pad1d replication_pad2d upsample_bicubic2d upsample_nearest1d upsample_linear1d
    upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_nearest_exact2d
    im2col col2im unfold fold embedding one_hot
    arange linspace zeros ones full empty rand randn eye scalar_tensor zeros_like ones_like full_like empty_like
    rand_like randn_like new_zeros new_ones new_full new_empty tensor lift_fresh tril triu tril_indices triu_indices
    view reshape view_as reshape_as flatten unflatten permute transpose transpose_ t numpy_T mT adjoint movedim
    swapaxes swapdims squeeze squeeze_ unsqueeze unsqueeze_ expand expand_as repeat repeat_interleave tile broadcast_to
    broadcast_tensors select slice narrow split split_with_sizes chunk tensor_split unbind unsafe_split unsafe_chunk
    cat concat stack hstack vstack index index_select index_put index_put_ gather scatter scatter_ scatter_add
    scatter_add_ masked_select masked_scatter take take_along_dim where roll flip rot90 diagonal diag meshgrid
    as_strided alias detach detach_ contiguous clone copy_ to type_as _to_copy fill_ zero_ nonzero unique
    dropout dropout_ feature_dropout native_dropout alpha_dropout rrelu
    size dim numel sym_size Int IntImplicit Float ScalarImplicit Bool item __getitem__ len _shape_as_tensor
    floor_divide resolve_conj resolve_neg real imag view_as_complex view_as_real
    """.split()
)
# Elementwise operators that torch does not tag as pointwise.
_POINTWISE = frozenset(
    "hardtanh relu6 selu celu glu prelu hardswish leaky_relu log_sigmoid bernoulli index_add type_as fill "
    "__and__ __or__ __xor__ __iand__ __ior__".split()
)
_FLOPS_PER_MAC = 2


def _shape(value: Any) -> list[int]:
    shape = value.type().sizes() if value.isCompleteTensor() else None
    if shape is None:
        raise ModelError("the traced graph has a tensor of unknown shape")
    return list(shape)


def _matmul(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """(..., N, K) x (..., K, M): N x K x M for every broadcast batch."""
    return Counter({"matmul": math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]})


def _bmm(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter({"bmm": math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]})


def _baddbmm(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter({"baddbmm": math.prod(_shape(outputs[0])) * _shape(inputs[1])[-1]})


def _mm(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter({"mm": math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]})


def _addbmm(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter({"baddbmm": math.prod(_shape(outputs[0])) * math.prod(_shape(inputs[1])[::2])})


def _linear(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter({"linear": math.prod(_shape(outputs[0])) * _shape(inputs[1])[-1]})


def _convolution_mode(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """A convolution whose padding is a name (``same``, ``valid``): each output takes one filter."""
    return Counter({"convolution_mode": math.prod(_shape(outputs[0])) * math.prod(_shape(inputs[1])[1:])})


def _recurrent(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """LSTM, GRU and plain recurrence: every position takes each weight matrix once, of all layers and directions."""
    sequence, _, weights = inputs[:3]
    shapes = [_shape(weight) for weight in weights.node().inputs()]
    each = sum(math.prod(shape) for shape in shapes if len(shape) == 2)
    return Counter({"recurrent": math.prod(_shape(sequence)[:-1]) * each})


def _addmv(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter({"mv": math.prod(_shape(inputs[1]))})


def _attention(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Scaled dot-product attention: q x k^T, then the weights x v; masked positions are computed like any other."""
    query, key, value = (_shape(item) for item in inputs[:3])
    batch = math.prod(_shape(outputs[0])[:-2])
    return Counter({"scaled_dot_product_attention": batch * query[-2] * key[-2] * (query[-1] + value[-1])})


def _einsum(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """A contraction of two operands costs the product of all its indices' sizes; of more, pair by pair."""
    equation = inputs[0].toIValue()
    shapes = [_shape(operand) for operand in inputs[1].node().inputs()]
    return Counter({"einsum": einsum_macs(equation, shapes)})


def einsum_macs(equation: str, shapes: list[list[int]]) -> int:
    """Multiply-adds of ``torch.einsum(equation, *operands)``, contracted from the left as torch does by default.

    Raises
    ------
    ModelError
        For an equation that names an index in two sizes, or with more or fewer operands than shapes.
    """
    terms, _, output = equation.replace(" ", "").partition("->")
    operands = terms.split(",")
    if len(operands) != len(shapes):
        raise ModelError(f"einsum {equation!r} has {len(operands)} operands, {len(shapes)} shapes were given")
    sizes: dict[str, int] = {}
    named = []
    for term, shape in zip(operands, shapes, strict=True):
        indices = _einsum_indices(term, len(shape))
        named.append(indices)
        for index, size in zip(indices, shape, strict=True):
            if sizes.setdefault(index, size) == 1:
                sizes[index] = size
            elif size not in (1, sizes[index]):
                raise ModelError(f"einsum {equation!r}: index {index} has sizes {sizes[index]} and {size}")
    if "->" in equation:
        dots = max((len(indices) - len(term.replace("...", "")) for term, indices in zip(operands, named, strict=True)))
        wanted = set(_einsum_indices(output, len(output.replace("...", "")) + (dots if "..." in output else 0)))
    else:
        seen = Counter(index for indices in named for index in indices)
        wanted = {index for index, count in seen.items() if count == 1 or not index.isalpha()}
    total, left = 0, set(named[0])
    for position, right in enumerate(named[1:], start=1):
        total += math.prod(sizes[index] for index in left | set(right))
        later = {index for indices in named[position + 1 :] for index in indices} | wanted
        left = (left | set(right)) & later
    return total


def _einsum_indices(term: str, dims: int) -> list[str]:
    before, dots, after = term.partition("...")
    if not dots:
        return list(term)
    hidden = dims - len(before) - len(after)
    return [*before, *(f".{hidden - position}" for position in range(hidden)), *after]


def _is_light(operator: str) -> bool:
    """Whether an uncounted operator does no more than a few operations an element."""
    if operator.startswith("prim::"):
        return operator != "prim::PythonOp"
    if not operator.startswith("aten::"):
        return False
    name = operator.removeprefix("aten::")
    for known in {name, name.removesuffix("_")}:  # in place, an operator does the same work
        if known in _LIGHT or known in _POINTWISE:
            return True
        packet = getattr(torch.ops.aten, known, None)
        if packet is not None and any(
            torch.Tag.pointwise in getattr(packet, overload).tags for overload in packet.overloads()
        ):
            return True
    return False


class UncountedOperatorError(ModelError):
    """The graph has an operator whose work is neither counted nor known to be small."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """Operations of one forward pass: ``by_operator`` in multiply-adds, or elements where fvcore counts those."""

    by_operator: Mapping[str, int]
    by_module: Mapping[str, Mapping[str, int]]

    def total(self, counting: str) -> int:
        """Operations under one of the spec language's counting conventions."""
        return total(self.by_operator, counting)


def total(by_operator: Mapping[str, int], counting: str) -> int:
    """Sum the operators that a convention counts."""
    counted = {
        "macs": (*_WEIGHTED, *_ACTIVATIONS),
        "macs-attention": _WEIGHTED,
        "macs+norms": (*_WEIGHTED, *_ACTIVATIONS, *_NORMS, *_RESAMPLING),
        "fvcore": (
            *(name for name in (*_WEIGHTED, *_ACTIVATIONS) if name not in _UNKNOWN_TO_FVCORE),
            *_NORMS,
            *_RESAMPLING,
        ),
    }[counting]
    return sum(by_operator.get(name, 0) for name in counted)


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """The fast path of nn.MultiheadAttention hides a whole layer in one operator that no counter knows."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def count(model: nn.Module, example: torch.Tensor) -> Count:
    """Count one forward pass of ``model`` (in eval mode) on ``example``, of shape (B, C, H, W), on the CPU.

    Raises
    ------
    UncountedOperatorError
        When an operator is neither counted nor light; every such operator is named with its number of calls.
    """
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    with _without_fast_path():
        analysis = FlopCountAnalysis(model.eval(), example)
        analysis.tracer_warnings("none").unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.set_op_handle(
            **{
                "aten::matmul": _matmul,
                "aten::bmm": _bmm,
                "aten::mm": _mm,
                "aten::baddbmm": _baddbmm,
                "aten::addbmm": _addbmm,
                "aten::addmv": _addmv,
                "aten::_convolution_mode": _convolution_mode,
                **dict.fromkeys(("aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu"), _recurrent),
                "aten::linear": _linear,
                "aten::einsum": _einsum,
                "aten::scaled_dot_product_attention": _attention,
            }
        )
        with torch.no_grad():
            by_module = analysis.by_module_and_operator()
        uncounted = {name: calls for name, calls in analysis.unsupported_ops().items() if not _is_light(name)}
    if uncounted:
        listed = ", ".join(f"{name} (called {calls} times)" for name, calls in sorted(uncounted.items()))
        raise UncountedOperatorError(f"the work of {listed} is neither counted nor known to be light")
    known = {*_WEIGHTED, *_ACTIVATIONS, *_NORMS, *_RESAMPLING}
    strange = set(by_module[""]) - known
    if strange:
        raise UncountedOperatorError(f"fvcore counted under names that belong to no convention: {sorted(strange)}")
    return Count(
        by_operator={name: int(value) for name, value in sorted(by_module[""].items())},
        by_module={
            module: {name: int(value) for name, value in counts.items()}
            for module, counts in by_module.items()
            if counts
        },
    )


def _flash_attention_for_cpu(query: Any, key: Any, value: Any, *args: Any, out_val: Any = None, **kwargs: Any) -> int:
    batch = math.prod(query[:-2])
    return int(_FLOPS_PER_MAC * batch * query[-2] * key[-2] * (query[-1] + value[-1]))


def _lstm_for_cpu(
    sequence: Any, from_input: Any, from_hidden: Any, *args: Any, out_val: Any = None, **kwargs: Any
) -> int:
    return int(_FLOPS_PER_MAC * math.prod(sequence[:-1]) * (math.prod(from_input) + math.prod(from_hidden)))


# FlopCounterMode knows the kernels of attention and of LSTM on CUDA only and counts the CPU's as nothing.
_CPU_KERNELS: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _flash_attention_for_cpu,
    torch.ops.aten.mkldnn_rnn_layer: _lstm_for_cpu,
}


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """FlopCounterMode fails for a module that is given a parameter that asks for a gradient, as a class token is."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def second_count(model: nn.Module, example: torch.Tensor) -> int:
    """Multiply-adds of all matrix products by torch's FlopCounterMode, which counts below the tracer.

    ``model`` and ``example`` may lie on the meta device, where counting takes no arithmetic.
    """
    with _without_gradients(model):
        return second_count_of(lambda: model.eval()(example))


def second_count_of(forward: Callable[[], object]) -> int:
    """The same for anything that runs a forward pass, of a model whose parameters ask for no gradients."""
    counter = FlopCounterMode(display=False, custom_mapping=_CPU_KERNELS)
    with torch.no_grad(), _without_fast_path(), counter:
        forward()
    return int(counter.get_total_flops()) // _FLOPS_PER_MAC
