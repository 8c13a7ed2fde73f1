"""Formula against simulation, over settings drawn from all that can be chosen."""

from __future__ import annotations

import pytest

from loralab import memory
from loralab.memory.fit import WITHIN
from tests import memory_grid as grid

ROWS = grid.read()


def test_the_stored_grid_is_the_one_that_is_drawn():
    """`python -m tests.memory_grid` writes it anew."""
    assert [row.settings for row in ROWS] == list(grid.settings())
    assert len(ROWS) >= 200
    assert len({str(row.settings) for row in ROWS}) == len(ROWS)
    for name, choices in (grid.CHOICES | grid.ADAPTER_CHOICES | grid.QLORA_CHOICES).items():
        seen = {str(row.settings[name]) for row in ROWS if name in row.settings}
        assert len(seen) >= len({str(choice) for choice in choices}), name


def test_formula_and_simulation_agree_within_five_per_cent():
    worst = grid.worst(ROWS)
    assert abs(worst[0].error) < 0.05, "\n".join(map(str, worst))


def test_most_settings_agree_within_one_per_cent():
    near = sum(abs(row.error) < 0.01 for row in ROWS)
    assert near > 0.9 * len(ROWS)


def test_with_the_allocators_blocks_they_are_as_near_as_the_search_for_changes_assumes():
    assert max(abs(row.beside_blocks) for row in ROWS) < WITHIN - 1


def test_the_table_that_is_read_is_in_step():
    assert grid.TABLE.read_text("utf-8") == grid.table(ROWS)


@pytest.mark.parametrize("number", [0, 53, 107, 161, 215, 269])
def test_a_simulation_gives_what_is_stored(number):
    row = ROWS[number]
    assert memory.simulate(**row.settings).total == pytest.approx(row.simulated, rel=1e-3)
