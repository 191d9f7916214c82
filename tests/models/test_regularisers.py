"""Table 9 as a configuration, and its claims on built models."""

from __future__ import annotations

import pytest
import timm
import yaml

from repro.models.regularisers import layer_scales, stochastic_depth


def test_what_a_model_has_is_found():
    with_both = timm.create_model("convnext_atto", drop_path_rate=0.1)
    assert stochastic_depth(with_both)
    assert layer_scales(with_both)
    assert not stochastic_depth(timm.create_model("convnext_atto"))
    assert layer_scales(timm.create_model("poolformer_s12"))


@pytest.mark.parametrize("name", ["iformer_t", "iformer_m"])
def test_iformer_has_neither(name):
    model = timm.create_model(name)
    assert not stochastic_depth(model)
    assert not layer_scales(model)


def test_the_configuration_is_the_papers_and_says_what_it_rests_on(repro):
    result = repro("train-config", "iformer_t", "--distilled")
    assert result.exit_code == 0, result.stderr
    config = yaml.safe_load(result.stdout)
    assert config["model"] == "iformer_t"
    assert config["epochs"] == 300
    assert config["batch_size"] * 8 == 4096
    assert config["drop_path"] == 0
    assert config["model_ema"] is False
    assert timm.is_model(config["kd_model_name"].partition(".")[0])
    assert result.stderr.count("none in the built model, as printed") == 2
    assert "Layer scale: none" in result.stdout


def test_a_model_that_has_what_the_table_excludes_is_told(repro):
    result = repro("train-config", "convnext_atto")
    assert result.exit_code == 1
    assert "Layer scale: " in result.stderr


def test_a_table_without_settings_and_an_unknown_model_are_one_line(repro):
    for arguments in (["iformer_t", "--table", "18"], ["iformer_xx"]):
        result = repro("train-config", *arguments)
        assert result.exit_code == 2
        assert len(result.stderr.strip().splitlines()) == 1
