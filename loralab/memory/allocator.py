"""PyTorch's caching allocator for CUDA, without a GPU: which block each tensor would get.

`torch.cuda.max_memory_allocated` counts blocks, and a block can be larger than its tensor. Which
block a tensor gets follows from what was taken and given back before, by a few fixed rules
(`c10/cuda/CUDACachingAllocator.cpp`, with its defaults, without expandable segments):

- a size is rounded up to a multiple of 512 bytes;
- sizes up to 1 MiB come from segments of 2 MiB, those under 10 MiB from segments of 20 MiB, and
  larger ones have a segment of their own, of a multiple of 2 MiB; small ones and the others are
  never in one segment;
- the smallest free block that is large enough is taken, and split if what is left over is at least
  512 bytes (small sizes) or more than 1 MiB (the others): otherwise it is handed out whole;
- a block that comes back joins its free neighbours; no segment goes back to the driver.
"""

from __future__ import annotations

from bisect import bisect_left, insort

ROUNDED = 512
SMALL, MiB = 2**20, 2**20
SMALL_SEGMENT, LARGE_SEGMENT = 2 * MiB, 20 * MiB
OWN_SEGMENT, SEGMENTS_OF = 10 * MiB, 2 * MiB


def rounded(n_bytes: int) -> int:
    """A size in bytes as the allocator rounds it."""
    return max(ROUNDED, -(-n_bytes // ROUNDED) * ROUNDED)


class Block:
    """A piece of a segment. `size`: bytes; `at`: its address; `before`, `after`: its neighbours."""

    __slots__ = ("after", "at", "before", "free", "pool", "size")

    def __init__(self, size: int, at: int = 0, pool: Pool | None = None):
        self.size, self.at, self.pool, self.free = size, at, pool, False
        self.before: Block | None = None
        self.after: Block | None = None


Pool = list[tuple[int, int, Block]]  # size and address of free blocks, the smallest first


class ExactAllocator:
    """Hands out what is asked for, as if memory had no blocks. `allocated`, `reserved`: bytes."""

    def __init__(self) -> None:
        self.allocated = 0

    @property
    def reserved(self) -> int:
        return self.allocated

    def take(self, n_bytes: int) -> Block:
        self.allocated += n_bytes
        return Block(n_bytes)

    def give_back(self, block: Block) -> None:
        self.allocated -= block.size

    def release_unused(self) -> None:
        """There is nothing unused."""


class CachingAllocator:
    """`allocated`: bytes of the blocks that are handed out; `reserved`: bytes of all segments."""

    def __init__(self) -> None:
        self.allocated = self.reserved = self._end = 0
        self._small: Pool = []
        self._large: Pool = []

    def take(self, n_bytes: int) -> Block:
        """The block for a tensor of so many bytes."""
        if not n_bytes:
            return Block(0)
        size = rounded(n_bytes)
        pool = self._small if size <= SMALL else self._large
        place = bisect_left(pool, (size, -1))
        block = pool.pop(place)[2] if place < len(pool) else self._segment(size, pool)
        block.free = False
        left = block.size - size
        if left > SMALL or (pool is self._small and left >= ROUNDED):
            rest = Block(left, block.at + size, pool)
            rest.before, rest.after = block, block.after
            if block.after is not None:
                block.after.before = rest
            block.after, block.size = rest, size
            self._keep(rest)
        self.allocated += block.size
        return block

    def give_back(self, block: Block) -> None:
        """The block is free again."""
        if not block.size:
            return
        self.allocated -= block.size
        for other in (block.before, block.after):
            if other is None or not other.free:
                continue
            block.pool.pop(bisect_left(block.pool, (other.size, other.at)))
            block.size += other.size
            if other is block.before:
                block.at, block.before = other.at, other.before
                if block.before is not None:
                    block.before.after = block
            else:
                block.after = other.after
                if block.after is not None:
                    block.after.before = block
        self._keep(block)

    def release_unused(self) -> None:
        """Give segments that are free as a whole back, as `torch.cuda.empty_cache()` does."""
        for pool in (self._small, self._large):
            whole = [found for found in pool if found[2].before is None and found[2].after is None]
            self.reserved -= sum(size for size, _, _ in whole)
            for found in whole:
                pool.remove(found)

    def _keep(self, block: Block) -> None:
        block.free = True
        insort(block.pool, (block.size, block.at, block))

    def _segment(self, size: int, pool: Pool) -> Block:
        if size <= SMALL:
            whole = SMALL_SEGMENT
        elif size < OWN_SEGMENT:
            whole = LARGE_SEGMENT
        else:
            whole = -(-size // SEGMENTS_OF) * SEGMENTS_OF
        # Addresses only grow, and segments never touch: the driver's own order is not known.
        block = Block(whole, self._end, pool)
        self._end += 2 * whole
        self.reserved += whole
        return block
