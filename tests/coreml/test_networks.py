"""Whole conversions against PyTorch: small modules at every target, and the networks of the tables where slow."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repro.coreml.check import TOLERANCE, check_conversion, check_package
from repro.coreml.convert import INPUT, OUTPUT, TARGETS, convert
from repro.coreml.interpreter import Program
from repro.coreml.weights import randomise, sample_inputs
from tests.coreml.programs import coremltools
from tests.coreml.tamper import argument, ops, tampered


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Heads(nn.Module):
    """PyTorch's own attention, which takes another path in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        return self.attention(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    """Rows as sequences."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1, 2))[0]


def _windows(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    x = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
    return torch.roll(x, (2, 1), (1, 2))


def _attention(x: Tensor) -> Tensor:
    q = x.flatten(2).transpose(1, 2)
    return F.scaled_dot_product_attention(q, q * 0.7, q + 0.2)


def _masked(x: Tensor) -> Tensor:
    q = x.flatten(2).transpose(1, 2)
    mask = torch.ones(64, 64).tril()
    return F.scaled_dot_product_attention(q, q, q, attn_mask=mask.log())


def _grid(x: Tensor) -> Tensor:
    theta = torch.tensor([[[0.8, 0.3, 0.1], [-0.2, 0.9, -0.1]]])
    return F.grid_sample(x, F.affine_grid(theta, [1, 4, 8, 8], align_corners=True), align_corners=True)


MODULES: dict[str, nn.Module] = {
    "convolution": nn.Conv2d(4, 6, 3, 2, 1, 2),
    "padding as named": nn.Conv2d(4, 6, 4, padding="same"),
    "padding reflected": nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "padding replicated": nn.Conv2d(4, 6, 3, padding=2, padding_mode="replicate"),
    "transposed convolution": nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1),
    "grouped transposed convolution": nn.ConvTranspose2d(4, 8, 2, 2, groups=2),
    "batch norm alone": nn.BatchNorm2d(4),
    "instance norm": nn.InstanceNorm2d(4, affine=True),
    "group norm": nn.GroupNorm(2, 4),
    "layer norm": nn.LayerNorm([4, 8, 8]),
    "local response norm": nn.LocalResponseNorm(3),
    "normalised": Function(lambda x: F.normalize(x, dim=1)),
    "maximum pooling rounded up": nn.MaxPool2d(3, 2, 0, ceil_mode=True),
    "maximum pooling": nn.MaxPool2d(3, 2, 1),
    "average pooling without its padding": nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "average pooling with its padding": nn.AvgPool2d(3, 2, 1),
    "adaptive pooling": nn.AdaptiveAvgPool2d(2),
    "mean and spread": Function(lambda x: x.mean((2, 3), keepdim=True) + x.var((2, 3), keepdim=True).sqrt()),
    "bilinear, corners aligned": Function(lambda x: F.interpolate(x, (13, 11), mode="bilinear", align_corners=True)),
    "bilinear, twice": Function(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)),
    "bilinear, to a size": Function(lambda x: F.interpolate(x, (16, 24), mode="bilinear", align_corners=False)),
    "bicubic": Function(lambda x: F.interpolate(x, (13, 5), mode="bicubic", align_corners=False)),
    "bicubic, corners aligned": Function(lambda x: F.interpolate(x, (13, 5), mode="bicubic", align_corners=True)),
    "bicubic, by a factor": Function(lambda x: F.interpolate(x, scale_factor=(1.7, 0.6), mode="bicubic")),
    "nearest": Function(lambda x: F.interpolate(x, scale_factor=2, mode="nearest")),
    "pixel shuffle": nn.PixelShuffle(2),
    "pixel unshuffle": nn.PixelUnshuffle(2),
    "channel shuffle": Function(lambda x: x.view(1, 2, 2, 8, 8).transpose(1, 2).reshape(1, 4, 8, 8)),
    "windows rolled": Function(_windows),
    "chunks": Function(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)),
    "slices": Function(lambda x: x[:, 1:, ::2, -3:] + x[:, :1, 1::2, :3]),
    "axes swapped": Function(lambda x: x.swapaxes(-1, 1) + x.swapdims(1, 3)),
    "multi-head attention as a module": Heads(),
    "lstm both ways": Recurrent(nn.LSTM(8, 5, num_layers=2, bidirectional=True, batch_first=True)),
    "plain recurrence": Recurrent(nn.RNN(8, 5, batch_first=True)),
    "gated recurrence": Recurrent(nn.GRU(8, 5, batch_first=True)),
    "flip": Function(lambda x: x.flip(-1, 1)),
    "pads": Function(lambda x: F.pad(x, (1, 2, 0, 3), value=0.5)),
    "reflection": Function(lambda x: F.pad(x, (1, 2, 3, 1), mode="reflect")),
    "attention": Function(_attention),
    "masked attention": Function(_masked),
    "einsum": Function(lambda x: torch.einsum("nchw,nchv->nhwv", x, x)),
    "softmax by channel": nn.Softmax(1),
    "log softmax": nn.LogSoftmax(1),
    "logsumexp": Function(lambda x: x.logsumexp(1)),
    "sorted": Function(lambda x: x.topk(3, -1).values),
    "cumulated": Function(lambda x: x.cumsum(2)),
    "where": Function(lambda x: torch.where(x > 0.1, x, x.exp())),
    "clamped": Function(lambda x: x.clamp(-0.5, 0.7)),
    "product added": Function(lambda x: torch.addcmul(x, x + 1, x.sigmoid()) + x.addcmul(x, x, value=0.3)),
    "powers": Function(lambda x: x.abs().pow(1.7) + x**3 + x.abs().add(0.1).rsqrt() + (x.abs() + 0.1).log()),
    "floor and remainder": Function(lambda x: (x * 7).floor() + torch.remainder(x, 0.3) + (x * 3).round()),
    "gathered": Function(lambda x: x[:, torch.tensor([3, 0, 1])]),
    "triangle": Function(lambda x: x.tril(1) + x.triu(-1)),
    "unfolded": Function(lambda x: F.unfold(x, 2, stride=2)),
    "sampled on a grid": Function(_grid),
    "repeated": Function(lambda x: x.repeat(1, 2, 1, 1).repeat_interleave(2, 1)),
    **{
        f"activation {type(module).__name__}": module
        for module in (
            nn.ReLU6(),
            nn.Hardswish(),
            nn.Hardsigmoid(),
            nn.SiLU(),
            nn.Mish(),
            nn.GELU(),
            nn.ELU(0.7),
            nn.LeakyReLU(0.2),
            nn.PReLU(4, 0.3),
            nn.Softplus(),
            nn.Softsign(),
            nn.Tanh(),
            nn.Hardtanh(-0.4, 0.8),
            nn.SELU(),
        )
    },
    "activation GELU by tanh": nn.GELU(approximate="tanh"),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_what_pytorch_makes_of_it(tmp_path: Path, name: str) -> None:
    coremltools()
    torch.manual_seed(0)
    index = list(MODULES).index(name)
    module = MODULES[name].eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        want = module(x).numpy()
    for target in {TARGETS[index % 4], TARGETS[-1]}:
        path = convert(module, tmp_path / "x.mlpackage", input_size=(4, 8, 8), precision="float32", target=target)
        found = Program.load(path).run({INPUT: x})[OUTPUT]
        assert found.shape == want.shape
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def _made(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    net = timm.create_model(name)
    size = net.default_cfg["input_size"]
    return randomise(net, input_size=size), size


@pytest.mark.parametrize(
    ("name", "target"),
    [("test_efficientnet", "iOS15"), ("test_vit", "iOS18"), ("test_convnext", "iOS16"), ("test_resnet", "iOS17")],
)
def test_tiny_networks_pass_the_gates(tmp_path: Path, name: str, target: str) -> None:
    coremltools()
    net, size = _made(name)
    for result in check_conversion(net, input_size=size, folder=tmp_path, target=target):
        assert result.verdict == "passed", result.failures
        assert result.overflows == ()


NORMALISATION: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "target", "kind"),
    [
        ("iformer_t", "iOS15", "tensor"),
        ("iformer_t", "iOS18", "image"),
        ("mobilenetv3_large_075", "iOS16", "image"),
        ("mobilevitv2_050", "iOS17", "tensor"),
        ("efficientvit_b1", "iOS15", "tensor"),
    ],
)
def test_networks_of_the_tables_pass_the_gates(tmp_path: Path, name: str, target: str, kind: Any) -> None:
    net, size = _made(name)
    normalisation = NORMALISATION if kind == "image" else {}
    results = check_conversion(net, input_size=size, folder=tmp_path, target=target, input_kind=kind, **normalisation)
    for result in results:
        assert result.verdict == "passed", result.failures
        assert result.rounded is None or result.rounded.error < 0.2


@pytest.fixture(scope="module")
def iformer(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    net, size = _made("iformer_t")
    path = tmp_path_factory.mktemp("iformer") / "iformer.mlpackage"
    return net, convert(net, path, input_size=size, precision="float32")


def _tanh(spec: Any) -> None:
    for op in ops(spec, "gelu"):
        argument(spec, op, "mode").strings.values[:] = ["TANH_APPROXIMATION"]


def _no_bias(spec: Any) -> None:
    del list(ops(spec, "conv"))[20].inputs["bias"]


def _other_axis(spec: Any) -> None:
    argument(spec, list(ops(spec, "softmax"))[2], "axis").ints.values[:] = [-2]


@pytest.mark.slow
@pytest.mark.parametrize("fault", [_tanh, _no_bias, _other_axis])
def test_a_fault_in_a_deep_network_is_caught(
    iformer: tuple[nn.Module, Path], tmp_path: Path, fault: Callable[[Any], None]
) -> None:
    net, path = iformer
    result = check_package(tampered(path, tmp_path / "bad.mlpackage", fault), net)
    assert result.verdict == "failed"
    assert result.float32.error > TOLERANCE


@pytest.mark.slow
def test_the_interpreter_is_within_three_times_pytorch(iformer: tuple[nn.Module, Path]) -> None:
    net, path = iformer
    x = sample_inputs((3, 224, 224), count=1, seed=0)
    program = Program.load(path)

    def median(run: Callable[[], object]) -> float:
        times = []
        for _ in range(9):
            start = time.process_time()
            run()
            times.append(time.process_time() - start)
        return sorted(times[2:])[3]

    def eager() -> None:
        with torch.inference_mode():
            net(x)

    assert median(lambda: program.run({INPUT: x})) < 3 * median(eager)
