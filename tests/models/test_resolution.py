"""Networks at image sizes that their tables of positions were not made for."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from repro.models.resolution import fit_positions


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    model = timm.create_model("efficientformer_l1", num_classes=3).eval()
    for name, parameter in model.named_parameters():
        if "attention_biases" in name:
            torch.nn.init.normal_(parameter)
    return model


def test_its_own_size_changes_nothing(network: torch.nn.Module) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fit_positions(network, (224, 224))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_another_size_runs_and_its_biases_are_of_offsets(network: torch.nn.Module) -> None:
    with torch.inference_mode():
        assert fit_positions(network, (96, 160))(torch.zeros(1, 3, 96, 160)).shape == (1, 3)
    attention = next(module for module in network.modules() if hasattr(module, "attention_bias_idxs"))
    maps = attention.get_attention_biases(torch.device("cpu"))
    assert maps.shape == (attention.num_heads, 15, 15)
    # what lies between places 0 and 1 is what lies between 6 and 7, a row below, and between 1 and 0
    assert torch.equal(maps[:, 0, 1], maps[:, 6, 7])
    assert torch.equal(maps[:, 0, 1], maps[:, 1, 0])
    assert not torch.equal(maps[:, 0, 1], maps[:, 0, 5])


@pytest.mark.slow
def test_a_distilled_efficientformer_converts_at_another_size(tmp_path: Path) -> None:
    from repro.coreml.check import check_package
    from repro.coreml.convert import convert
    from repro.coreml.exporting import deployed
    from repro.spec.tables import Variant

    seeded = {"path": None, "seed": 0, "sha256": None, "wrapper": None}
    module = deployed(Variant(id="l1", builder="timm", model="efficientformer_l1"), (96, 96), seeded)
    package = convert(module, tmp_path / "l1.mlpackage", input_size=96)
    assert check_package(package, module).verdict == "passed"
