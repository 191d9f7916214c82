"""What one block of a network costs, operator by operator: the evidence of a formula. Runs inside a worker."""

from __future__ import annotations

import logging
import math
from collections import Counter
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from repro.measure.macs import count
from repro.models.catalogue import build, without_initialisation
from repro.models.reparam import reparameterise
from repro.spec.tables import Variant

# Products of two maps of equal shape, element by element: modulation. No counter of multiply-adds counts them.
ELEMENTWISE = "elementwise_product"


def operators_of(variant: Variant, shape: tuple[int, ...]) -> dict[str, Any]:
    """Count one forward pass of a block, its branches merged, on an input of ``shape``, (B, C, H, W).

    Returns
    -------
    dict
        ``operators``: multiply-adds by operator, and under ``elementwise_product`` the elements that products of two
        maps of equal shape make.
    """
    with without_initialisation():
        block = nn.Sequential(build(variant)).eval()  # a block that is itself replaced needs a parent
    reparameterise(block)
    example = torch.zeros(shape)
    operators = {name: int(value) for name, value in count(block, example).by_operator.items() if value}
    return {"operators": {**operators, ELEMENTWISE: _elementwise(block, example)}}


def _elementwise(block: nn.Module, example: torch.Tensor) -> int:
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    analysis = FlopCountAnalysis(block, example)
    analysis.tracer_warnings("none").unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.set_op_handle("aten::mul", _product)
    with torch.no_grad():
        return int(analysis.by_operator().get(ELEMENTWISE, 0))


def _product(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    first, second = (value.type().sizes() if value.isCompleteTensor() else [] for value in inputs[:2])
    return Counter({ELEMENTWISE: math.prod(first) if first and first == second else 0})
