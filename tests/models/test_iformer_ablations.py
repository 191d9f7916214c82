"""iFormer's ablations: their cost, their relation to iFormer-M, and what windows and chunks compute."""

import itertools
from dataclasses import replace

import pytest
import timm
import torch
from timm.models.iformer import checkpoint_filter_fn
from timm.utils.model import reparameterize_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from repro.errors import ModelError
from repro.models import iformer_ablations as ablations
from repro.models.iformer_ablations import IFORMER_M, VARIANTS, IFormerAblation, IFormerConfig, create, hybrid, parts
from repro.models.official import StateDictError, load_official

SIZES = ("t", "s", "m", "l", "l2")
# Every kind of stage, small: odd widths, widths that chunks do not divide, attention before the last conv block.
TINY = IFormerConfig(
    widths=(8, 10, 18, 30), conv_blocks=(1, 1, 2, 0), attention_blocks=(0, 0, 3, 2), reduction=(0, 0, 2, 3), window=4
)


@pytest.fixture
def explicit_attention(monkeypatch):
    """Attention as matrix products, which torch's counter sees."""
    monkeypatch.setattr(ablations, "use_fused_attn", lambda: 0)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every weight and every BatchNorm statistic a value of its own, so that nothing is hidden."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        noise = torch.randn(value.shape, generator=generator) if value.is_floating_point() else None
        if name.endswith("running_var"):
            value.copy_(1 + noise.abs())
        elif name.endswith(("running_mean", "bias")):
            value.copy_(0.1 * noise)
        elif value.ndim == 1:
            value.copy_(0.8 + 0.1 * noise)
        elif noise is not None:
            value.copy_(noise / value[0].numel() ** 0.5)
    return model.eval()


def fused_params(model: nn.Module) -> int:
    """Parameters once each BatchNorm is folded: two of its vectors go, and a convolution before it gains a bias."""
    params = sum(p.numel() for p in model.parameters())
    params -= sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    return params - sum(2 * m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm1d))


def macs(model: nn.Module, *shape: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(shape, device="meta"))
    return counter.get_total_flops() // 2


def official_layout(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict under the names that the released checkpoints use."""
    modules = dict(model.named_modules())
    names = {}
    for key in model.state_dict():
        first, *rest = key.split(".")
        if first == "stem":
            where = {"conv1": "0.0", "conv2": "0.2.conv_exp_bn1", "conv3": "0.2.conv_pwl_bn2"}[rest[0]]
            names[key] = f"downsample_layers.{where}." + ".".join(rest[1:])
        elif first == "head":
            name = {"head": "classifier", "head_dist": "classifier_dist"}[rest[0]]
            names[key] = ".".join(["classifier", name, *rest[1:]])
        elif rest[1] == "downsample":
            names[key] = f"downsample_layers.{rest[0]}.0." + ".".join(rest[2:])
        else:
            block = modules[".".join(key.split(".")[:4])]
            mixer = "channel_mixer" if type(block).__name__ == "FFN" else "token_channel_mixer"
            tail = [mixer if part == "mixer" else "m" if part == "module" else part for part in rest[3:]]
            names[key] = f"stages.{rest[0]}.{rest[2]}.block." + ".".join(tail)
    return {names[key]: value.clone() for key, value in model.state_dict().items()}


def assert_rounds(value: float, printed: str) -> None:
    assert f"{value:.{len(printed.partition('.')[2])}f}" == printed


# Parameters in M (BatchNorm folded) and MACs in G (attention counted), as measured for the printed rows
COSTS = {
    "iformer_m_t10_baseline": (224, "10.342", "1.7917"),
    "iformer_m_t10_number_of_blocks": (224, "8.421", "1.6959"),
    "iformer_m_t10_ffn_width": (224, "8.569", "1.6183"),
    "iformer_m_t10_attn_head_and_ffn_width": (224, "8.864", "1.6383"),
    "iformer_m_t14_sha": (224, "9.898", "1.7483"),
    "iformer_m_t14_split": (224, "9.898", "1.7483"),
    "iformer_m_t14_quarter": (224, "8.3185", "1.54685"),
    "iformer_m_t14_concat": (224, "8.6503", "1.57937"),
    "iformer_m_hybrid": (512, "8.879", "8.914"),
    "iformer_m_hybrid_chunked": (512, "8.879", "8.914"),
    "iformer_m_windowed": (512, "8.879", "8.688"),
}


@pytest.mark.parametrize("name", COSTS)
def test_cost(name, explicit_attention):
    size, params, gmacs = COSTS[name]
    model = timm.create_model(name, device="meta").eval()
    assert_rounds(fused_params(model) / 1e6, params)
    assert_rounds(macs(model, 1, 3, size, size) / 1e9, gmacs)
    assert sum(p.numel() for p in reparameterize_model(model).parameters()) == fused_params(model)


def test_cost_of_iformer_m(explicit_attention):
    model = create(IFORMER_M, device="meta").eval()
    assert_rounds(fused_params(model) / 1e6, "8.879")
    assert_rounds(macs(model, 1, 3, 224, 224) / 1e9, "1.6399")
    assert_rounds(macs(model, 1, 3, 512, 512) / 1e9, "9.594")


@pytest.mark.parametrize(("kernel", "percent"), [(3, "2.1"), (5, "5.9"), (7, "11.6"), (9, "19.1")])
def test_depthwise_convolution_in_every_ffn(kernel, percent, explicit_attention):
    plain = create(IFORMER_M, device="meta").eval()
    model = timm.create_model(f"iformer_m_t11_dwconv{kernel}", device="meta").eval()
    added = macs(model, 1, 3, 224, 224) / macs(plain, 1, 3, 224, 224) - 1
    assert f"{added:.1%}" == f"{percent}%"
    # One in each of 14 conv blocks and 6 FFNs, on the expanded channels
    channels = 4 * (2 * 48 + 2 * 96 + 10 * 192) + 3 * (4 * 192 + 2 * 384)
    assert fused_params(model) - fused_params(plain) == channels * (kernel**2 + 1)


@pytest.mark.parametrize("name", ["iformer_m_hybrid_chunked", "iformer_m_t14_concat", "iformer_m_t11_dwconv5"])
def test_parts_cost_what_the_model_costs(name, explicit_attention):
    model = timm.create_model(name, device="meta").eval()
    height, width = 500, 333
    chain = [(part.build(device="meta").eval(), part.shape) for part in parts(VARIANTS[name], height, width)]
    assert sum(fused_params(module) for module, _ in chain) == fused_params(model)
    assert sum(macs(module, *shape) for module, shape in chain) == macs(model, 1, 3, height, width)


def test_equal_parts_are_one():
    chain = parts(IFORMER_M)
    assert len(set(chain)) < len(chain) / 2


@pytest.mark.parametrize("size", SIZES)
def test_configurations_have_the_layout_of_timms_models(size):
    theirs = timm.create_model(f"iformer_{size}", device="meta")
    ours = create(getattr(ablations, f"IFORMER_{size.upper()}"), device="meta")
    chunked = timm.create_model(f"iformer_{size}_hybrid_chunked", device="meta")
    layouts = [[(k, v.shape) for k, v in model.state_dict().items()] for model in (theirs, ours, chunked)]
    assert layouts[0] == layouts[1] == layouts[2]
    assert ours.feature_info == theirs.feature_info


def test_default_is_timms_iformer_m():
    theirs = randomise(timm.create_model("iformer_m"))
    ours = create(IFormerConfig()).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 97, 160)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


def test_drop_path_rates_are_timms():
    ours, theirs = (
        create(IFORMER_M, drop_path_rate=0.3, device="meta"),
        timm.create_model("iformer_m", drop_path_rate=0.3, device="meta"),
    )
    rates = [
        [(name, m.drop_prob) for name, m in model.named_modules() if hasattr(m, "drop_prob")]
        for model in (ours, theirs)
    ]
    assert rates[0] == rates[1]
    assert len(rates[0]) > 20


def test_attention_is_the_same_fused_and_written_out(monkeypatch):
    image = torch.randn(1, 3, 96, 96)
    outputs = []
    for fused in (0, 1):
        monkeypatch.setattr(ablations, "use_fused_attn", lambda fused=fused: fused)
        with torch.no_grad():
            outputs.append(randomise(create(hybrid(TINY)))(image))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)


def test_split_computes_what_sha_computes():
    sha, split = (create(replace(TINY, gated=False, attention=kind)) for kind in ("full", "split"))
    randomise(sha)
    split.eval().load_state_dict(sha.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(sha(image), split(image))


@pytest.mark.parametrize("kind", ["quarter", "concat"])
def test_attention_on_a_quarter_of_the_channels(kind):
    attention = randomise(ablations.SingleHeadAttention(16, 1, False, kind))
    x = torch.randn(1, 16, 5, 5)
    changed = x.clone()
    changed[:, 4:, 0, 0] += 1
    with torch.no_grad():
        difference = (attention(changed) - attention(x)).abs().sum(dim=1)[0]
    # The other channels reach their own position at most: they take no part in attention
    assert difference.flatten()[1:].max() == 0
    assert (difference[0, 0] > 0) == (kind == "concat")


def test_concat_puts_attention_before_the_other_channels():
    attention = randomise(ablations.SingleHeadAttention(16, 1, False, "concat"))
    x = torch.randn(1, 16, 5, 5)
    with torch.no_grad():
        attention.proj.c.weight[:, 4:] = 0
        assert torch.equal(attention(x), attention(torch.cat([x[:, :4], torch.randn(1, 12, 5, 5)], dim=1)))


def windows_one_by_one(stage: ablations.Stage, x: torch.Tensor, window: int, first: int, last: int) -> torch.Tensor:
    """Run a stage as the paper says it, with every window cut out by hand and run alone."""
    x = stage.downsample(x)
    for block in stage.blocks[:first]:
        x = block(x)
    H, W = x.shape[2:]
    padded = x.new_zeros(*x.shape[:2], -(-H // window) * window, -(-W // window) * window)
    padded[:, :, :H, :W] = x
    for top, left in itertools.product(range(0, padded.shape[2], window), range(0, padded.shape[3], window)):
        rows, columns = slice(top, top + window), slice(left, left + window)
        padded[:, :, rows, columns] = stage.blocks[first : last + 1](padded[:, :, rows, columns].clone())
    x = padded[:, :, :H, :W]
    for block in stage.blocks[last + 1 :]:
        x = block(x)
    return x


@pytest.mark.parametrize(("height", "width"), [(128, 192), (130, 97), (32, 32)])
@pytest.mark.parametrize("windowed", [(0, 0, 2, 1), (0, 0, 3, 2), (0, 0, 1, 0)])
def test_windows_against_windows_run_one_by_one(height, width, windowed):
    model = randomise(create(replace(TINY, windowed=windowed)))
    with torch.no_grad():
        x = model.stages[:2](model.stem(torch.randn(2, 3, height, width)))
        for index in (2, 3):
            stage = model.stages[index]
            expected = x = stage(x) if not windowed[index] else x
            if windowed[index]:
                attention = [i for i, b in enumerate(stage.blocks) if isinstance(b, ablations.AttentionBlock)]
                expected = windows_one_by_one(stage, x, 4, attention[0], attention[windowed[index] - 1])
                x = stage(x)
            torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)


def test_hybrid_leaves_the_last_attention_of_a_stage_global():
    for size in SIZES:
        config = VARIANTS[f"iformer_{size}_hybrid"]
        for stage, blocks in enumerate(config.attention_blocks):
            assert config.windowed[stage] == max(blocks - 1, 0)
        assert config.window == 16
        assert VARIANTS[f"iformer_{size}_hybrid_chunked"] == replace(config, chunks=16)
    # Stage 3 of iFormer-M: 9 conv blocks, then (CPE, attention, FFN): attention 1 to 3 are windowed, 4 is not
    assert VARIANTS["iformer_m_hybrid"].windowed_span(2) == (10, 16)
    assert VARIANTS["iformer_m_windowed"].windowed_span(2) == (10, 19)


@pytest.mark.parametrize("chunks", [2, 4, 7, 16, 18])
@pytest.mark.parametrize(("height", "width"), [(512, 512), (330, 97)])
def test_chunking_changes_no_bit(chunks, height, width):
    plain = randomise(create(hybrid(TINY)))
    chunked = create(hybrid(TINY, chunks=chunks)).eval()
    chunked.load_state_dict(plain.state_dict())
    assert len(chunked.stages[2].chunk_sizes) == chunks
    image = torch.randn(1, 3, height, width)
    with torch.no_grad():
        assert torch.equal(plain(image), chunked(image))


@pytest.mark.parametrize("size", [(192, 272), (333, 250)])
def test_chunking_changes_no_bit_of_iformer_m(size):
    plain = randomise(timm.create_model("iformer_m_hybrid"))
    chunked = timm.create_model("iformer_m_hybrid_chunked").eval()
    chunked.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        assert torch.equal(plain(image), chunked(image))


def test_a_window_that_is_the_map_is_global_attention():
    """Appendix F: at 224 px stage 3 is 14x14, "it equals to the window attention when P=14"."""
    plain = randomise(create(IFORMER_M))
    windowed = create(replace(IFORMER_M, windowed=(0, 0, 4, 0), window=14, chunks=16)).eval()
    windowed.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(plain(image), windowed(image))


@pytest.mark.parametrize("chunks", [1, 16])
@pytest.mark.parametrize("layout", ["official", "timm"])
def test_released_state_dicts_load_unchanged(chunks, layout):
    source = randomise(create(TINY))
    released = official_layout(source) if layout == "official" else source.state_dict()
    model = create(hybrid(TINY, chunks=chunks))
    load_official(model, checkpoint_filter_fn({"model": released}, model))
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())
    released.popitem()
    with pytest.raises(StateDictError, match="missing key"):
        load_official(model, checkpoint_filter_fn({"model": released}, model))


def test_a_released_file_loads_through_timm(tmp_path):
    source = randomise(timm.create_model("iformer_m_distilled"))
    torch.save({"model": official_layout(source)}, tmp_path / "released.pth")
    overlay = {"file": str(tmp_path / "released.pth")}
    model = timm.create_model(
        "iformer_m_hybrid_chunked", pretrained=True, pretrained_cfg_overlay=overlay, distillation=True
    )
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


def test_every_variant_is_registered():
    assert set(VARIANTS) <= set(timm.list_models(module="iformer_ablations"))
    for name, config in VARIANTS.items():
        size = (3, 512, 512) if any(config.windowed) else (3, 224, 224)
        assert timm.get_pretrained_cfg(name).input_size == size


@pytest.mark.parametrize("name", ["iformer_t_hybrid_chunked", "iformer_m_t14_quarter"])
def test_features(name):
    model = timm.create_model(name, device="meta", features_only=True, out_indices=(0, 2, 3))
    features = model(torch.empty(1, 3, 70, 64, device="meta"))
    widths = [VARIANTS[name].widths[i] for i in (0, 2, 3)]
    assert model.feature_info.channels() == widths
    assert [tuple(f.shape) for f in features] == [
        (1, width, -(-70 // stride), 64 // stride) for width, stride in zip(widths, (4, 16, 32), strict=True)
    ]


SMALL = replace(TINY, conv_blocks=(1, 0, 1, 0), attention_blocks=(0, 0, 2, 1))
KINDS = {
    "hybrid": hybrid(SMALL, chunks=3),
    "dwconv": replace(SMALL, ffn_kernel=5),
    "no gate, no cpe": replace(SMALL, gated=False, cpe_kernel=0),
    "split": replace(SMALL, attention="split"),
    "quarter": replace(SMALL, attention="quarter", gated=False),
    "concat": replace(SMALL, attention="concat"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_training_step(kind):
    torch.manual_seed(0)
    model = create(KINDS[kind], num_classes=7, drop_path_rate=0.1, layer_scale_init_value=1e-2, distillation=True)
    model.train().set_grad_checkpointing()
    model.set_distilled_training()
    logits, distilled = model(torch.randn(8, 3, 65, 80))
    (logits.square().mean() + distilled.square().mean()).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing
    assert logits.shape == distilled.shape == (8, 7)


@pytest.mark.parametrize("kind", ["hybrid", "no gate, no cpe", "split", "concat"])
def test_script_and_trace(kind):
    model = randomise(create(KINDS[kind]))
    small, large = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 130, 97)
    with torch.no_grad():
        traced, scripted = torch.jit.trace(model, small), torch.jit.script(model)
        for form in (traced, scripted):  # neither fixes the size it was made with
            for image in (small, large):
                torch.testing.assert_close(form(image), model(image))


@pytest.mark.parametrize("kind", KINDS)
def test_reparameterised(kind):
    model = randomise(create(KINDS[kind], distillation=True))
    deployed = reparameterize_model(model)
    assert not any(isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d) for m in deployed.modules())
    image = torch.randn(1, 3, 130, 97)
    with torch.no_grad():
        torch.testing.assert_close(deployed(image), model(image), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64), (1, 3, 0, 64)])
def test_images_that_cannot_be(shape):
    model = create(hybrid(TINY)).eval()
    model.stem.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    for run in (model, model.forward_intermediates):
        with pytest.raises(ModelError, match=r"images of shape \(batch, 3, height, width\)"):
            run(torch.zeros(shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windowed": (0, 0, 5, 0)}, "stage 3: 5 of 4 attention blocks"),
        ({"windowed": (0, 0, 4, 0), "chunks": 193}, "192 channels cannot be cut into 193 chunks"),
        ({"widths": (8, 16, 32)}, "4 values for 3 stages"),
        ({"conv_kernel": 4}, "conv_kernel is 4"),
        ({"ffn_kernel": 2}, "ffn_kernel is 2"),
        ({"attention": "half"}, "attention is 'half'"),
        ({"reduction": (0, 0, 0, 4)}, "stage 3: attention needs"),
        ({"reduction": (0, 0, 64, 4), "attention": "quarter"}, "a reduction from 1 to 48"),
        ({"window": 0}, "at least 1"),
        ({"chunks": 0}, "at least 1"),
    ],
)
def test_configurations_that_make_no_model(change, message):
    with pytest.raises(ModelError, match=message):
        replace(IFORMER_M, **change)


def test_meta_models_can_be_materialised():
    model = IFormerAblation(TINY, device="meta")
    assert all(p.is_meta for p in model.parameters())
    model.to_empty(device="cpu").init_weights()
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, 64, 64)).isfinite().all()
