"""`python -m tests.memory_grid`: simulate the grid again and write it down, in ten minutes."""

from __future__ import annotations

import json
import time

from tests import memory_grid as grid


def main() -> None:
    rows, began = [], time.perf_counter()
    for number, settings in enumerate(grid.settings(), 1):
        rows.append(grid.simulated(settings))
        print(f"{number:3} {rows[-1].error:+7.2%} {json.dumps(settings)}", flush=True)
    grid.write(rows)
    grid.TABLE.write_text(grid.table(rows), "utf-8")
    print(f"{len(rows)} settings in {time.perf_counter() - began:.0f} s")
    for row in grid.worst(rows):
        print(row)


if __name__ == "__main__":
    main()
