"""A cluster of two nodes on one machine gives what a single process gives, also when workers and a node are lost."""

from __future__ import annotations

from functools import partial

import pytest

from repro.accuracy.datasets import open_dataset
from repro.accuracy.engine import evaluate
from repro.accuracy.errors import EvaluationError
from repro.accuracy.executor import DirectExecutor
from repro.accuracy.job import Options
from repro.accuracy.ray_executor import RayExecutor
from tests.accuracy import made
from tests.accuracy.test_engine import SMALL, equal

pytestmark = pytest.mark.slow
CLASSES = 12


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = made.image_folder(tmp_path_factory.mktemp("images") / "val", classes=CLASSES, per_class=5)
    return open_dataset(root, classes=CLASSES)


def expected(dataset, entries):
    return evaluate(dataset, entries, options=SMALL, executor=DirectExecutor()).predictions


def test_two_nodes_give_the_same(cluster, dataset):
    entries = [made.cheap("a", CLASSES), made.cheap("b", CLASSES, 0.5, crop_pct=1.0)]
    told = []
    result = evaluate(
        dataset, entries, options=Options(batch_size=4), executor=RayExecutor(shard=2), progress=told.append
    )
    assert (result.passes, result.evaluated, result.failures) == (1, 60, {})
    equal(result.predictions, expected(dataset, entries))
    assert told[-1].done == 60


def test_killed_workers_change_nothing(cluster, dataset, tmp_path):
    entries = [made.entry("deadly", partial(made.Deadly, CLASSES, str(tmp_path), 3, False, 2))]
    result = evaluate(dataset, entries, options=Options(batch_size=4), executor=RayExecutor(shard=2))
    assert (tmp_path / "2").exists()
    equal(result.predictions, expected(dataset, [made.entry("deadly", partial(made.mean_colour, CLASSES))]))


def test_a_lost_node_changes_nothing(cluster, dataset):
    node = cluster.add_node(num_cpus=2)
    lost = []

    def lose(status):
        if status.done and not lost:
            lost.append(status)
            cluster.remove_node(node)

    entries = [made.entry("slow", partial(made.Slow, CLASSES, 0.3))]
    result = evaluate(dataset, entries, options=Options(batch_size=4), executor=RayExecutor(shard=1), progress=lose)
    assert lost
    equal(result.predictions, expected(dataset, [made.cheap("slow", CLASSES, 0.3, crop_pct=1.0)]))


def test_groups_that_take_turns(cluster, dataset):
    entries = [made.entry(f"heavy {i}", partial(made.Heavy, CLASSES, 300)) for i in range(3)]
    little = Options(batch_size=4, memory=1000 * 2**20)
    result = evaluate(dataset, entries, options=little, executor=RayExecutor(workers=2, shard=4))
    assert result.passes == 2
    equal(result.predictions, expected(dataset, entries))


def test_failures_and_a_shard_that_always_dies(cluster, dataset, tmp_path):
    entries = [made.entry("refused", partial(made.refuses, "x.pth: no such file")), made.cheap("a", CLASSES)]
    result = evaluate(dataset, entries, options=Options(batch_size=4), executor=RayExecutor())
    assert result.failures == {"refused": "x.pth: no such file"}
    equal(result.predictions, expected(dataset, entries[1:]))
    deadly = [made.entry("deadly", partial(made.Deadly, CLASSES, str(tmp_path), 1000, False, 1))]
    with pytest.raises(EvaluationError, match="lost 4 workers"):
        evaluate(dataset, deadly, options=Options(batch_size=60), executor=RayExecutor())
    with pytest.raises(EvaluationError, match="has no GPU"):
        evaluate(dataset, entries, options=Options(device="cuda"), executor=RayExecutor())
