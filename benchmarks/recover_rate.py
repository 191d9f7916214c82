"""How many configurations `repro recover` counts a second, on one core, with nothing counted beforehand.

    python benchmarks/recover_rate.py [TABLE ...]

The promise is 200 a second. A whole-model count of one configuration is timed beside it, for scale.
"""

from __future__ import annotations

import sys
import time

import torch

from repro.compare.recover import recover, rows_of
from repro.compare.tolerance import Tolerance
from repro.measure.counts import count_variant
from repro.measure.recover import Space
from repro.spec.project import Project

PROMISED = 200


def main() -> int:
    torch.set_num_threads(1)
    slow = False
    for number in [int(text) for text in sys.argv[1:]] or [10, 14]:
        table = Project().table(number)
        assert table.search is not None
        rows = rows_of(table, list(table.search.rows))
        space = Space(table.search.space, table.search.base, (224, 224))
        start, cpu = time.perf_counter(), time.process_time()
        recover(table, rows, space.count, Tolerance())
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        print(
            f"table {number}: {space.counted} configurations in {seconds:.2f} s: "
            f"{space.counted / seconds:.0f} a second ({space.counted / cpu:.0f} a second of processor time)"
        )
        slow |= space.counted / cpu < PROMISED
    variant = Project().table(10).rows[0].variant
    assert variant is not None
    start = time.perf_counter()
    count_variant(variant, (224, 224))
    print(f"one whole-model count, as `repro table` makes it: {time.perf_counter() - start:.2f} s")
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
