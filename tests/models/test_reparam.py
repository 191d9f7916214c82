"""Folding and reparameterising change the form of a network, never its function."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from repro.models.reparam import find_folds, fold_batch_norms, reparameterise, to_form


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and weights under which no branch and no norm is close to the identity."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "gamma" in name or "layer_scale" in name or parameter.dim() <= 1:
            value = torch.rand(parameter.shape, generator=generator) * 0.5 + 0.75
            parameter.data = value if not name.endswith("bias") else (value - 1) * 0.4
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean = torch.randn(module.running_mean.shape, generator=generator) * 0.2
            module.running_var = torch.rand(module.running_var.shape, generator=generator) + 0.5
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) for module in model.modules())


def close(a: torch.Tensor, b: torch.Tensor, relative: float = 1e-3) -> bool:
    return bool((a - b).abs().max() <= relative * b.abs().max())


@pytest.mark.parametrize(
    "layers",
    [
        lambda: (nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)),
        lambda: (nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6, affine=False)),
        lambda: (nn.Conv2d(3, 8, 1), BatchNormAct2d(8, act_layer=nn.GELU)),
        lambda: (nn.ConvTranspose2d(3, 8, 3, stride=2), nn.BatchNorm2d(8)),
        lambda: (nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 8, 2, groups=4), nn.BatchNorm2d(8)),
        lambda: (nn.Conv2d(3, 8, 1), nn.Identity(), nn.Dropout(0.5), nn.BatchNorm2d(8)),
        lambda: (nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, bias=False)),
        lambda: (nn.Flatten(), nn.LazyLinear(8), nn.BatchNorm1d(8), nn.ReLU()),
        lambda: (nn.Flatten(), nn.BatchNorm1d(3 * 36), nn.Dropout(0.1), nn.Linear(3 * 36, 4)),
    ],
)
def test_a_norm_beside_a_linear_operator_is_folded(layers):
    torch.manual_seed(0)
    model = nn.Sequential(*layers())
    example = torch.randn(2, 3, 6, 6)
    model.eval()(example)
    randomise(model)
    folded = fold_batch_norms(model, example)
    assert norms(model) == 1
    assert norms(folded) == 0
    torch.testing.assert_close(folded(example), model(example), rtol=1e-4, atol=1e-5)


class TwoReaders(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


class NormReadTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(3), nn.Linear(3, 3)

    def forward(self, x):
        y = self.norm(x.mean((2, 3)))
        return self.head(y) + y


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.conv(self.norm(self.conv(x)))


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean()
        return nn.functional.conv2d(x, weight, self.bias)


@pytest.mark.parametrize(
    "model",
    [
        TwoReaders,
        NormReadTwice,
        Shared,
        lambda: nn.Sequential(Standardised(3, 4, 1), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
    ],
)
def test_a_norm_that_cannot_be_folded_is_left(model):
    model = model().eval()
    example = torch.randn(2, 3, 6, 6)
    assert find_folds(model, example) == []
    torch.testing.assert_close(fold_batch_norms(model, example)(example), model(example))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv2_100",
        "mobilenetv3_large_100",
        "mobilenetv4_conv_small",
        "efficientnet_b0",
        "iformer_t",
        "repvit_m1_0",
        "fastvit_t12",
        "ghostnetv3_100",
        "mobileone_s2",
        "swiftformer_xs",
        "shvit_s1",
        "efficientformerv2_s0",
        "efficientformer_l1",
        "mobilevit_xxs",
        "efficientvit_b0",
        "lowformer_b0",
        "resnet18",
    ],
)
def test_forms_of_real_models_give_the_same_logits(name):
    torch.manual_seed(0)
    model = randomise(timm.create_model(name))
    example = torch.randn(2, *model.default_cfg["input_size"])
    with torch.no_grad():
        trained = model(example)
        deployed = to_form(model, "reparameterised", example)
        folded = to_form(model, "folded", example)
        assert close(deployed(example), trained)
        assert close(folded(example), trained)
    assert norms(folded) <= norms(deployed) <= norms(model)


@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformerv2_s0"])
def test_distilled_heads_are_averaged(name):
    model = timm.create_model(name)
    before = sum(p.numel() for p in model.parameters())
    head = sum(p.numel() for p in model.head_dist.parameters())
    assert reparameterise(model)
    assert before - sum(p.numel() for p in model.parameters()) >= head


def test_heads_that_read_different_tokens_are_not_merged():
    model = timm.create_model("deit_tiny_distilled_patch16_224")
    reparameterise(model)
    assert isinstance(model.head_dist, nn.Linear)


def test_an_unknown_form_is_refused():
    from repro.errors import ModelError

    with pytest.raises(ModelError, match="unknown form"):
        to_form(nn.Identity(), "fused", torch.zeros(1))
