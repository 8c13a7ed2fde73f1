"""The caching allocator against what PyTorch's own says of its blocks and segments.

The numbers are `c10/cuda/CUDACachingAllocator.cpp`'s; on a CUDA GPU the same is asked of PyTorch.
"""

from __future__ import annotations

import random

import pytest
import torch

from loralab.memory.allocator import CachingAllocator, ExactAllocator
from loralab.memory.ledger import Ledger

KiB, MiB = 2**10, 2**20


def taken(*sizes: int) -> CachingAllocator:
    allocator = CachingAllocator()
    for size in sizes:
        allocator.take(size)
    return allocator


@pytest.mark.parametrize("asked, allocated, reserved", [
    (1, 512, 2 * MiB),
    (512, 512, 2 * MiB),
    (513, 1024, 2 * MiB),
    (MiB, MiB, 2 * MiB),
    (MiB + 1, MiB + 512, 20 * MiB),
    (10 * MiB - 512, 10 * MiB - 512, 20 * MiB),
    (10 * MiB, 10 * MiB, 10 * MiB),
    # 135 MiB, the MLP of a 13B model: 1 MiB of its segment is over, and is not split off.
    (135 * MiB, 136 * MiB, 136 * MiB),
    (135 * MiB - 512, 135 * MiB - 512, 136 * MiB),
    (0, 0, 0),
])  # fmt: skip
def test_one_tensor(asked, allocated, reserved):
    allocator = taken(asked)
    assert (allocator.allocated, allocator.reserved) == (allocated, reserved)


def test_small_and_large_tensors_never_share_a_segment():
    assert taken(12 * MiB, 512).reserved == 14 * MiB
    assert taken(6 * MiB, 6 * MiB, 6 * MiB, 2 * MiB).reserved == 20 * MiB


def test_a_block_that_is_at_most_one_mebibyte_too_large_is_handed_out_whole():
    allocator = CachingAllocator()
    block = allocator.take(20 * MiB)
    allocator.give_back(block)
    assert allocator.take(19 * MiB).size == 20 * MiB
    allocator = CachingAllocator()
    allocator.give_back(allocator.take(20 * MiB))
    assert allocator.take(19 * MiB - 512).size == 19 * MiB - 512


def test_the_smallest_block_that_fits_is_taken():
    allocator = CachingAllocator()
    large, small = allocator.take(40 * MiB), allocator.take(30 * MiB)
    allocator.give_back(large)
    allocator.give_back(small)
    assert allocator.take(30 * MiB) is small
    assert allocator.reserved == 70 * MiB


def test_neighbours_join_in_whatever_order_they_come_back():
    for order in ((0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)):
        allocator = CachingAllocator()
        blocks = [allocator.take(6 * MiB) for _ in range(3)]
        for index in order:
            allocator.give_back(blocks[index])
        assert allocator.allocated == 0
        assert allocator.take(9 * MiB).size == 9 * MiB
        assert allocator.take(9 * MiB).size == 9 * MiB
        assert allocator.reserved == 20 * MiB, order


def test_an_emptied_cache_gives_back_segments_that_are_free_as_a_whole():
    allocator = CachingAllocator()
    whole, part = allocator.take(30 * MiB), allocator.take(2 * MiB)
    allocator.give_back(whole)
    allocator.release_unused()
    assert (allocator.allocated, allocator.reserved) == (2 * MiB, 20 * MiB)
    allocator.give_back(part)
    allocator.release_unused()
    assert (allocator.allocated, allocator.reserved) == (0, 0)


def program(seed: int, steps: int = 2000):
    """(size, None) for a tensor made, (None, place) for one of those alive that is freed."""
    draw, alive = random.Random(seed), 0
    for _ in range(steps):
        if alive and draw.random() < 0.48:
            yield None, draw.randrange(alive)
            alive -= 1
        else:
            yield int(draw.choice([2e3, 3e5, 2e6, 8e6, 4e7]) * draw.uniform(0.1, 1)) + 1, None
            alive += 1


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_lost_and_blocks_do_not_overlap(seed):
    allocator, alive = CachingAllocator(), []
    for size, place in program(seed):
        if place is None:
            block = allocator.take(size)
            assert size <= block.size <= size + MiB + 511
            alive.append(block)
        else:
            allocator.give_back(alive.pop(place))
        assert allocator.allocated == sum(block.size for block in alive) <= allocator.reserved
    ends = sorted((block.at, block.at + block.size) for block in alive)
    assert all(end <= begin for (_, end), (begin, _) in zip(ends, ends[1:]))
    reserved = allocator.reserved
    for block in alive:
        allocator.give_back(block)
    allocator.release_unused()
    assert (allocator.allocated, allocator.reserved) == (0, 0) and reserved > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares with PyTorch's on a GPU")
@pytest.mark.parametrize("seed", range(5))
def test_pytorch_hands_out_the_same_blocks(seed):
    torch.cuda.empty_cache()
    begun = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    allocator, ours, theirs = CachingAllocator(), [], []
    for size, place in program(seed, 500):
        if place is None:
            ours.append(allocator.take(size))
            theirs.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        else:
            allocator.give_back(ours.pop(place))
            theirs.pop(place)
        assert torch.cuda.memory_allocated() - begun[0] == allocator.allocated
        assert torch.cuda.memory_reserved() - begun[1] == allocator.reserved


def test_a_ledger_counts_blocks_by_kind_and_remembers_the_fullest_moment():
    ledger = Ledger(CachingAllocator())
    ledger.made(1, 100, "weights", "first")
    ledger.made(2, 600, "temporary", "second")
    ledger.renamed(2, "gradients")
    ledger.freed(1)
    assert ledger.live_by == {"weights": 0, "temporary": 0, "gradients": 1024}
    assert (ledger.peak, ledger.peak_at) == (1536, "second")
    assert ledger.peak_by == {"weights": 512, "temporary": 1024}
    ledger.forget_peak()
    assert (ledger.peak, ledger.peak_by["gradients"]) == (1024, 1024)


def test_without_an_allocator_bytes_are_counted_as_they_are():
    ledger = Ledger()
    ledger.made(1, 100, "weights")
    assert ledger.live == ledger.peak == 100
    assert isinstance(ledger.allocator, ExactAllocator) and ledger.allocator.reserved == 100
