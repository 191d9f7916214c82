"""The forms in which a network is counted, exported and run: as trained, reparameterised, folded.

``reparameterise`` does what each family deploys: branches merged (RepVGG style), distilled heads averaged.
``fold_batch_norms`` then removes every BatchNorm that stands next to a linear operator. It does not need to know a
family: it watches one forward pass and pairs a BatchNorm with the convolution or linear layer whose output it alone
reads, or with the linear layer that alone reads its output.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from timm.layers.conv2d_same import Conv2dSame
from timm.utils.model import reparameterize_model
from torch import nn
from torch.overrides import TorchFunctionMode

from repro.errors import ModelError

# Modules whose forward is their weight's linear map and nothing more. Subclasses that change the weight on the way
# (weight standardisation, for one) must not be folded, hence exact types.
_LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear, Conv2dSame)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_TRANSPARENT = (nn.Identity, nn.Dropout)


# Torch functions that look at a tensor without using its values, or hand it on as it is in eval mode.
_NO_READERS = ("__get__", "dim", "size", "numel", "is_floating_point", "dropout", "feature_dropout")


class _Nothing(nn.Module):
    """Stands for a head whose weights went into its twin: adds zero.

    A constant, not ``new_zeros(())``: coremltools 9.0 takes that empty shape for one of floats and refuses to fill it.
    https://github.com/apple/coremltools/issues/1848
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.get_buffer("zero")


def has_two_heads(model: nn.Module) -> bool:
    """Whether ``model`` is one of timm's distilled EfficientFormers, whose forward returns the mean of two heads."""
    if type(model).__name__ not in ("EfficientFormer", "EfficientFormerV2"):
        return False
    return all(isinstance(getattr(model, name, None), nn.Linear) for name in ("head", "head_dist"))


def average_heads(model: nn.Module) -> bool:
    """Merge, in place, the two heads of a distilled EfficientFormer into one.

    Other families merge theirs in their own ``fuse``. Heads that read different tokens (DeiT's) cannot be merged.
    """
    if not has_two_heads(model):
        return False
    head, twin = model.get_submodule("head"), model.get_submodule("head_dist")
    assert isinstance(head, nn.Linear)
    assert isinstance(twin, nn.Linear)
    with torch.no_grad():
        head.weight.add_(twin.weight)
        head.bias.add_(twin.bias)
        if type(model).__name__ == "EfficientFormerV2":  # asks whether there is a second head
            head.weight.div_(2)
            head.bias.div_(2)
            model.head_dist = None  # type: ignore[assignment]
        else:
            model.head_dist = _Nothing()
    return True


def _structure(model: nn.Module) -> list[tuple[str, str]]:
    return [(name, type(module).__name__) for name, module in model.named_modules()]


def in_eval_mode(model: nn.Module) -> nn.Module:
    """Put ``model`` into eval mode unless it is there: entering it again would redo what some models do on the way."""
    return model.eval() if model.training else model


def merge_branches(model: nn.Module) -> bool:
    """Merge, in place, what the family itself merges for deployment, and say whether that changed anything."""
    before = _structure(model)
    in_eval_mode(model)
    reparameterize_model(model, inplace=True)
    return _structure(model) != before


def reparameterise(model: nn.Module) -> bool:
    """Turn ``model``, in place, into the form that its family deploys, and say whether that changed anything."""
    merged = merge_branches(model)
    return average_heads(model) or merged


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One BatchNorm and the linear operator that takes it over."""

    norm: str
    linear: str
    norm_first: bool


class _Watch(TorchFunctionMode):
    """Counts how many torch functions read each tensor of interest."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[int] = Counter()
        self.kept: dict[int, torch.Tensor] = {}

    def keep(self, tensor: torch.Tensor) -> int:
        self.kept[id(tensor)] = tensor  # holds it, so that no later tensor has its id
        return id(tensor)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") not in _NO_READERS:
            for value in (*args, *(kwargs or {}).values()):
                for tensor in value if isinstance(value, (list, tuple)) else (value,):
                    if isinstance(tensor, torch.Tensor) and id(tensor) in self.kept:
                        self.reads[id(tensor)] += 1
        return func(*args, **(kwargs or {}))


def find_folds(model: nn.Module, example: torch.Tensor) -> list[Fold]:
    """Watch ``model(example)`` and list the BatchNorms that can be folded, in the order of the forward pass.

    A BatchNorm is listed when it runs once, has running statistics, and either is the only reader of the output of a
    linear operator that runs once, or its output is read by one linear layer alone. A BatchNorm in front of a padded
    convolution is not: zero padding after it is no longer zero before it.
    """
    calls: Counter[str] = Counter()
    source: dict[int, str] = {}  # output tensor -> the module that made it
    inputs: dict[str, int] = {}
    outputs: dict[str, int] = {}
    order: list[str] = []
    watch = _Watch()
    handles = []

    def entered(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            calls[name] += 1
            if args and isinstance(args[0], torch.Tensor):
                inputs[name] = watch.keep(args[0])

        return hook

    def left(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, torch.Tensor):
                outputs[name] = watch.keep(output)
                if not isinstance(module, _TRANSPARENT):
                    source.setdefault(id(output), name)
                order.append(name)

        return hook

    modules = dict(model.named_modules())
    linears = {name for name, module in modules.items() if type(module) in _LINEAR}
    norms = {name for name, module in modules.items() if isinstance(module, _NORMS) and module.track_running_stats}
    for name, module in modules.items():
        if name in linears or name in norms:
            handles += [
                module.register_forward_pre_hook(entered(name)),
                module.register_forward_hook(left(name)),
            ]
    try:
        with torch.no_grad(), watch:
            model(example)
    finally:
        for handle in handles:
            handle.remove()

    readers: dict[int, list[str]] = {}
    for name in linears:
        if calls[name] == 1 and name in inputs:
            readers.setdefault(inputs[name], []).append(name)

    folds, taken = [], set()
    for name in order:
        if name not in norms or calls[name] != 1 or name not in inputs:
            continue
        before = source.get(inputs[name])
        if (
            before is not None
            and before in linears
            and calls[before] == 1
            and before not in taken
            and watch.reads[inputs[name]] == 1
        ):
            folds.append(Fold(norm=name, linear=before, norm_first=False))
            taken.add(before)
            continue
        after = readers.get(outputs[name], [])
        plain = type(modules[name]) in _NORMS  # with an activation inside, the norm is not the last step
        if plain and len(after) == 1 and watch.reads[outputs[name]] == 1 and _takes_a_norm(modules[after[0]]):
            folds.append(Fold(norm=name, linear=after[0], norm_first=True))
    return folds


def _takes_a_norm(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        return True
    return (
        type(module) is nn.Conv2d
        and module.padding in ((0, 0), "valid")
        and module.groups == 1
        and not module.transposed
    )


def _affine(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale and shift per channel that a BatchNorm is in eval mode."""
    assert isinstance(norm, _NORMS)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = torch.rsqrt(variance + norm.eps)
    scale = scale * norm.weight if norm.affine else scale
    shift = -mean * scale
    return scale, shift + norm.bias if norm.affine else shift


def _fold_after(linear: Any, scale: torch.Tensor, shift: torch.Tensor) -> None:
    weight = linear.weight
    if isinstance(linear, _TRANSPOSED):
        grouped = weight.reshape(linear.groups, -1, *weight.shape[1:])
        per = scale.reshape(linear.groups, 1, weight.shape[1], *[1] * (weight.dim() - 2))
        weight.copy_((grouped * per).reshape(weight.shape))
    else:
        weight.mul_(scale.reshape(-1, *[1] * (weight.dim() - 1)))
    bias = shift if linear.bias is None else linear.bias * scale + shift
    linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=weight.requires_grad)


def _fold_before(linear: Any, scale: torch.Tensor, shift: torch.Tensor) -> None:
    weight = linear.weight
    flat = weight.reshape(weight.shape[0], weight.shape[1], -1)
    moved = torch.einsum("oik,i->o", flat, shift)
    weight.mul_(scale.reshape(1, -1, *[1] * (weight.dim() - 2)))
    bias = moved if linear.bias is None else linear.bias + moved
    linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=weight.requires_grad)


def apply_folds(model: nn.Module, folds: list[Fold]) -> None:
    """Fold the listed BatchNorms in place. Works on meta tensors too, where only shapes are known."""
    with torch.no_grad():
        for fold in folds:
            norm, linear = model.get_submodule(fold.norm), model.get_submodule(fold.linear)
            scale, shift = _affine(norm)
            (_fold_before if fold.norm_first else _fold_after)(linear, scale, shift)
            replacement = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
            parent, _, child = fold.norm.rpartition(".")
            setattr(model.get_submodule(parent), child, replacement.eval())


def fold_batch_norms(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """Return a copy of ``model``, in eval mode, without the BatchNorms that can be folded.

    Parameters
    ----------
    example
        An input of shape (B, C, H, W), on the model's device; its values do not matter.
    """
    folded = in_eval_mode(copy.deepcopy(model))
    apply_folds(folded, find_folds(folded, example))
    return folded


def to_form(model: nn.Module, form: str, example: torch.Tensor) -> nn.Module:
    """Return a copy of ``model`` in one of the spec language's forms.

    Raises
    ------
    ModelError
        For a form that does not exist.
    """
    if form not in ("as_trained", "reparameterised", "folded"):
        raise ModelError(f"unknown form {form!r}: as_trained, reparameterised or folded")
    made = in_eval_mode(copy.deepcopy(model))
    if form != "as_trained":
        reparameterise(made)
    return fold_batch_norms(made, example) if form == "folded" else made
