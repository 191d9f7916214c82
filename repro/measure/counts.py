"""Params and MACs of one variant, in every form and under every convention, from one build of the model.

Runs inside a worker: it imports torch and timm.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from repro.measure.macs import Count, UncountedOperatorError, count, second_count, second_count_of, total
from repro.models.catalogue import build, without_initialisation
from repro.models.reparam import Fold, apply_folds, average_heads, find_folds, has_two_heads, merge_branches
from repro.spec.tables import COUNTINGS, InputSize, Variant

_NORMS = ("batch_norm",)


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy of ``model`` on the meta device that asks for no gradients; no weight is copied on the way."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.to("meta")
    return copy.deepcopy(model, memo)


def _params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _without_folded(counted: Count, folds: list[Fold]) -> dict[str, int]:
    """The operators that are left when the listed BatchNorms are folded away."""
    left = dict(counted.by_operator)
    for fold in folds:
        for name in _NORMS:
            left[name] = left.get(name, 0) - counted.by_module.get(fold.norm, {}).get(name, 0)
    return {name: value for name, value in left.items() if value}


def count_variant(variant: Variant, input_size: InputSize) -> dict[str, Any]:
    """Build ``variant`` and count it at ``input_size`` (height, width), batch 1.

    Returns
    -------
    dict
        ``params``: parameters by form. ``operators``: operations by form and operator. ``macs``: multiply-adds by
        ``form/counting``. ``cross_check``: by form, fvcore's products and FlopCounterMode's. Where an operator cannot
        be counted, ``errors`` says so of ``gmacs``, and ``params`` is all else there is.
    """
    refused: list[UncountedOperatorError] = []

    def counted() -> Count:
        try:
            return count(model, example)
        except UncountedOperatorError as error:  # params are known all the same
            refused.append(error)
            return Count(by_operator={}, by_module={})

    with without_initialisation():
        model = build(variant, input_size=input_size)
    example = torch.zeros(1, _channels(model), *input_size)
    on_meta = example.to("meta")

    trained = counted()
    params = {"as_trained": _params(model)}
    operators = {"as_trained": dict(trained.by_operator)}
    folds: list[Fold] = []
    meta = _on_meta(model)
    merged = merge_branches(model)
    # Distilled models of some families keep two heads until they are averaged; others merge them with their branches.
    averaging = has_two_heads(model)
    deployed = trained
    if merged or averaging:
        second = {"as_trained": second_count(meta, on_meta)}
        with_heads = _params(model), second_count(_on_meta(model), on_meta) if averaging and merged else None
        average_heads(model)
        deployed, meta = counted(), _on_meta(model)
        second["reparameterised"] = second_count_of(lambda: folds.extend(find_folds(meta, on_meta)))
    else:
        with_heads = _params(model), None
        second = {"as_trained": second_count_of(lambda: folds.extend(find_folds(meta, on_meta)))}
        second["reparameterised"] = second["as_trained"]
    params["reparameterised"] = _params(model)
    operators["reparameterised"] = dict(deployed.by_operator)

    apply_folds(meta, folds)
    params["folded"] = _params(meta)
    operators["folded"] = _without_folded(deployed, folds)
    second["folded"] = second["reparameterised"]  # folding removes no product

    params["folded_two_heads"] = params["folded"] + with_heads[0] - params["reparameterised"]
    operators["folded_two_heads"] = dict(operators["folded"])
    # As many products as before averaging: counted where branches were merged too, else those of the trained network.
    kept = second["reparameterised"] if not averaging else with_heads[1] or second["as_trained"]
    head = kept - second["reparameterised"]
    operators["folded_two_heads"]["linear"] = operators["folded"].get("linear", 0) + head
    second["folded_two_heads"] = kept

    if refused:
        return {"params": params, "errors": {"gmacs": {"reason": "refused", "message": str(refused[0])}}}
    return {
        "params": params,
        "operators": operators,
        "macs": {f"{form}/{name}": total(operators[form], name) for form in operators for name in COUNTINGS},
        "cross_check": {
            form: {"fvcore": total(operators[form], "macs"), "flop_counter": second[form]} for form in operators
        },
    }


def _channels(model: nn.Module) -> int:
    """Input channels: what the model says, else the usual three."""
    configuration = getattr(model, "default_cfg", None) or getattr(model, "pretrained_cfg", None)
    size = configuration.get("input_size") if isinstance(configuration, dict) else None
    return int(size[0]) if size else 3


def count_with(counter: str, variant: Variant, input_size: InputSize) -> dict[str, Any]:
    """Multiply-adds of ``variant`` as trained, as another program counts them by its own conventions.

    Parameters
    ----------
    counter
        ``thop`` or ``ptflops``: packages that are installed with the extra ``counters``.
    """
    with without_initialisation():
        model = build(variant, input_size=input_size)
    channels = _channels(model)
    if counter == "thop":
        import thop

        macs, _ = thop.profile(model, inputs=(torch.zeros(1, channels, *input_size),), verbose=False)
    else:
        from ptflops import get_model_complexity_info

        macs, _ = get_model_complexity_info(
            model,
            (channels, *input_size),
            as_strings=False,
            print_per_layer_stat=False,
            verbose=False,
            backend="pytorch",
        )
    return {"counted": int(macs)}
