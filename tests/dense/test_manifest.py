"""Manifests of detectors and segmenters: what the shipped one covers, and mistakes with their lines."""

import pytest

from repro.errors import InputError
from repro.models.dense.backbones import BACKBONES
from repro.models.dense.images import PIPELINES as IMAGES
from repro.spec.manifest import CLASSIFICATION, DETECTION, PIPELINES, SEGMENTATION, read_manifest
from repro.spec.project import Project

MANIFEST = Project.find(None).manifest
DENSE = [item for item in MANIFEST.checkpoints if item.task != CLASSIFICATION]


def test_every_row_and_task_has_an_entry():
    rows = [row for row in Project.find(None).table(13).rows if row.variant is not None]
    assert len(rows) == 12
    for row in rows:
        for task in (DETECTION, SEGMENTATION):
            assert MANIFEST.dense(row.variant.id, task), f"{row.model}: {task}"


@pytest.mark.parametrize("item", DENSE, ids=lambda item: item.id)
def test_what_is_listed_can_be_built(item):
    assert (item.build.model if item.build else item.variant) in BACKBONES
    if item.released:
        assert item.pipeline in IMAGES
        assert item.schedule
        assert item.reason or item.paper_row == "same"


def test_figures_of_the_papers_own_weights_are_the_rows():
    """What a publisher prints for the weights behind a row is what the row prints."""
    table = Project.find(None).table(13)
    for row in table.rows:
        for task, metrics in ((DETECTION, ("ap_box", "ap_mask")), (SEGMENTATION, ("miou",))):
            for item in MANIFEST.dense(row.variant.id, task):
                if item.paper_row == "same" and item.official is not None:
                    assert [getattr(item.official, name) for name in metrics] == [row.reported(m).text for m in metrics]


def test_pipelines_are_those_of_the_models():
    assert {name for names in PIPELINES.values() for name in names} == set(IMAGES)


def test_detectors_are_no_classifiers():
    for variant, items in MANIFEST.by_variant.items():
        assert all(item.task == CLASSIFICATION for item in items), variant


WRONG = """\
schema: 1
family: Small
checkpoints:
- id: first
  variant: small
  source: {url: "https://example.org/a.pth"}
  preprocessing: {input_size: 224, crop_pct: 0.9, interpolation: bicubic}
  schedule: 1x
  paper_row: same
- id: second
  variant: small
  task: detection
  head: semantic_fpn
  source: {url: "https://example.org/a.pth"}
  preprocessing: {input_size: 224, crop_pct: 0.9, interpolation: bicubic}
  official: {top1: "3", where: README}
  paper_row: same
- id: third
  variant: small
  task: segmentation
  schedule: 1x
  pipeline: coco
  source: {url: "https://example.org/a.pth"}
  paper_row: same
- id: fourth
  variant: small
  task: detecton
  source: {url: "https://example.org/a.pth"}
  preprocessing: {input_size: 224, crop_pct: 0.9, interpolation: bicubic}
  paper_row: same
"""


def test_all_mistakes_are_told_with_their_lines(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(WRONG)
    with pytest.raises(InputError) as raised:
        read_manifest(path)
    told = "\n".join(raised.value.lines)
    for line, message in (
        (8, "needs a task beside it"),
        (13, "unknown value 'semantic_fpn'"),
        (15, "must not be given for detection"),
        (10, "missing key 'schedule'"),
        (10, "missing key 'pipeline'"),
        (16, "unknown key 'top1'"),
        (16, "missing key 'ap_box'"),
        (22, "unknown value 'coco'"),
        (27, "unknown value 'detecton'; did you mean detection?"),
    ):
        assert any(f":{line}:" in text and message in text for text in told.splitlines()), (line, message, told)
