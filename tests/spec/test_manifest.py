"""Manifests: every mistake at once, with its line; and what the shipped ones say."""

from __future__ import annotations

import re

import pytest

from repro.errors import InputError
from repro.spec.manifest import load_manifest, read_manifest
from repro.spec.project import Project

WRONG = """\
schema: 1
family: Small
checkpoints:
- id: a b
  variant: small
  sorce: {url: "https://example.org/a.pth"}
  preprocessing: {input_size: 22x, crop_pct: 0, interpolation: bicubik, mean: [0.5]}
  paper_row: same
- id: second
  variant: small
  source: {url: "ftp://example.org/a.pth", hub: nobody}
  sha256: XYZ
  preprocessing: {input_size: 224, crop_pct: 0.9, interpolation: bicubic}
  recipe: {epochs: many, distilled: maybe}
  official: {top1: high, where: README}
  paper_row: different_recipe
- id: third
  variant: small
  paper_row: none_relesed
- id: fourth
  variant: small
  source: {url: "https://example.org/a.pth"}
  paper_row: none_released
"""


def test_all_mistakes_of_a_file_are_told_with_their_lines(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(WRONG)
    with pytest.raises(InputError) as raised:
        read_manifest(path)
    told = [(int(line.split(":")[1]), line.partition(f"{path}:")[2].partition(": ")[2]) for line in raised.value.lines]
    expected = [
        (4, "must be letters, digits"),
        (6, "unknown key 'sorce'; did you mean source?"),
        (7, "must be pixels"),
        (7, "must be above 0"),
        (7, "unknown value 'bicubik'; did you mean bicubic?"),
        (7, "must have three numbers"),
        (4, "missing key 'source', or paper_row: none_released"),
        (11, "needs exactly one of hub, url and by_hand"),
        (11, "must be OWNER/NAME"),
        (11, "must be an http or https address"),
        (12, "hexadecimal digits"),
        (14, "must be a whole number"),
        (14, "must be true or false"),
        (15, "must be a number"),
        (9, "missing key 'reason'"),
        (19, "unknown value 'none_relesed'; did you mean none_released?"),
        (22, "must not be given where paper_row is none_released"),
        (20, "missing key 'reason'"),
        (20, "missing key 'looked'"),
    ]
    for line, text in expected:
        assert any(where == line and text in message for where, message in told), (line, text, told)


def test_an_id_is_given_once_over_all_files(tmp_path):
    entry = (
        'schema: 1\nfamily: F\ncheckpoints:\n- {id: x, variant: v, paper_row: none_released, reason: "", looked: [a]}\n'
    )
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(entry.replace('""', "r"))
    with pytest.raises(InputError, match="a second checkpoint 'x', first at"):
        load_manifest(tmp_path)


def test_every_row_of_tables_12_13_and_18_is_listed():
    project = Project()
    wanted = {row.variant.id for number in (12, 13, 18) for row in project.table(number).rows if row.variant}
    assert len(wanted) >= 67
    assert wanted <= set(project.manifest.by_variant)


def test_the_shipped_manifests_state_what_the_issue_is_about():
    manifest = Project().manifest
    repvit = manifest.by_id["repvit_m1_0.dist_300e_in1k"]
    assert repvit.paper_row == "different_recipe"
    assert repvit.recipe.distilled
    assert repvit.preprocessing.crop_pct == 0.875
    for item in manifest.checkpoints:
        assert item.reason or item.paper_row == "same", item.id
        assert item.source is not None or item.looked, item.id
    # a row's resolution picks the weights that were trained at it
    sizes = {size: [item.id for item in manifest.of("efficientvit_b1", (size, size))] for size in (224, 288)}
    assert sizes == {224: ["efficientvit_b1.r224_in1k"], 288: ["efficientvit_b1.r288_in1k"]}


def test_hub_names_hashes_and_preprocessing_are_those_of_timms_registry():
    import timm

    checked = 0
    for item in Project().manifest.checkpoints:
        if item.source is None or not timm.is_model(item.id.partition(".")[0]) or "." not in item.id:
            continue
        config = timm.get_pretrained_cfg(item.id)
        if config is None or config.hf_hub_id is None or item.preprocessing is None:
            continue
        assert item.preprocessing.input_size == tuple(config.input_size[1:]), item.id
        assert item.preprocessing.mean == tuple(config.mean), item.id
        if item.source.hub:
            assert item.source.hub == config.hf_hub_id, item.id
        elif item.sha256 is not None:
            assert re.search(r"-([0-9a-f]+)\.pth", config.url)[1] == item.sha256, item.id
        checked += 1
    assert checked > 40
