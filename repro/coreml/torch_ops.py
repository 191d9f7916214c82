"""What coremltools lacks for networks that are otherwise within its reach, each with its report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def workarounds() -> Iterator[None]:
    """Trace and convert inside of this; coremltools is imported already.

    - ``torch.swapaxes`` and ``torch.swapdims`` are other names of ``torch.transpose`` that the converter does not know
      (torchvision's MaxViT). https://pytorch.org/docs/2.7/generated/torch.swapaxes.html
    - ``nn.MultiheadAttention`` in evaluation mode takes a fused path for which there is no conversion (torchvision's
      vision transformers); without it, the same arithmetic is traced. https://github.com/apple/coremltools/issues/2311
    - ``torch.addcmul`` and bicubic resizing (timm's CSATv2 and CrossViT) have no conversion in coremltools 9.0: one is
      a product and a sum, the other a product with a matrix along each side.
    """
    import torch
    from coremltools.converters.mil.frontend.torch import torch_op_registry

    registry: Any = torch_op_registry._TORCH_OPS_REGISTRY
    transpose = registry.get_func("transpose")
    for name in ("swapaxes", "swapdims"):
        if name not in registry:
            registry.set_func_by_name(transpose, name)
    for name, function in (("addcmul", _addcmul), ("upsample_bicubic2d", _upsample_bicubic2d)):
        if name not in registry:
            registry.set_func_by_name(function, name)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _addcmul(context: Any, node: Any) -> None:
    from coremltools.converters.mil import Builder

    start, left, right, *scale = (context[name] for name in node.inputs)
    product = Builder.mul(x=left, y=right)
    if scale and scale[0] is not None and scale[0].val != 1:
        product = Builder.mul(x=product, y=float(scale[0].val))
    context.add(Builder.add(x=start, y=product, name=node.name))


def _upsample_bicubic2d(context: Any, node: Any) -> None:
    from coremltools.converters.mil import Builder

    image, size, aligned, factors = (context[name] for name in node.inputs)
    height, width = image.shape[-2:]
    given = (None, None) if factors is None else tuple(float(factor) for factor in factors.val)
    if size is not None:
        sizes = tuple(int(side) for side in size.val)
    else:
        sizes = int(height * given[0]), int(width * given[1])
    corners = bool(aligned.val)
    rows = _resizing(height, sizes[0], given[0], corners)
    columns = _resizing(width, sizes[1], given[1], corners)
    tall = Builder.matmul(x=rows, y=image)
    context.add(Builder.matmul(x=tall, y=columns, transpose_y=True, name=node.name))


def _resizing(before: int, after: int, factor: float | None, corners: bool) -> Any:
    """The matrix (after, before) that resizes one side, as PyTorch resizes each unit vector."""
    import torch
    import torch.nn.functional as F

    units = torch.eye(before).reshape(1, before, before, 1)
    options: dict[str, Any] = {"mode": "bicubic", "align_corners": corners}
    if factor is None:
        resized = F.interpolate(units, (after, 1), **options)
    else:
        resized = F.interpolate(units, scale_factor=(factor, 1.0), **options)
    return resized[0, :, :, 0].T.contiguous().numpy()
