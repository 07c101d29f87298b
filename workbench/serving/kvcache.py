"""KV cache blocks with prefix reuse, as ranges of content instead of single blocks.

Freed blocks stay usable until evicted; the free list gives up the least recently freed first, and a request frees its
last blocks first, so what survives of a prompt is always its beginning. Hence a whole prompt is one *run* (blocks
``start`` up to ``resident``) and the free list a queue of ranges of runs: work per request, not per block. A request's
*path* is its own run below the runs of the requests it shares a prefix with. After vLLM 0.19 (``BlockPool``,
``get_computed_blocks``); deviation: a block computed twice is indexed once (the older copy while it is in use, else the
newer), where vLLM keeps both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

__all__ = ["PrefixPool"]


class _Range:
    """A stretch ``[low, high)`` of a run in the free queue, given up from ``high`` downwards; run None: no content."""

    __slots__ = ("high", "low", "run")

    def __init__(self, run: _Run | None, low: int, high: int) -> None:
        self.run, self.low, self.high = run, low, high


class _Run:
    """Blocks that one request was the first to compute: resident below ``resident``, in use below the deepest user."""

    __slots__ = ("depths", "free", "owner", "resident", "start")

    def __init__(self, owner: int, start: int) -> None:
        self.owner = owner
        self.start = self.resident = start
        self.depths: dict[int, int] = {}
        self.free: list[_Range] = []

    def used(self) -> int:
        """Blocks below this one are in use."""
        return max(self.depths) if self.depths else self.start

    def enter(self, depth: int) -> None:
        self.depths[depth] = self.depths.get(depth, 0) + 1

    def leave(self, depth: int) -> None:
        self.depths[depth] -= 1
        if not self.depths[depth]:
            del self.depths[depth]


class PrefixPool:
    """Which blocks of one replica hold what, and in which order free ones are given up.

    The caller counts free blocks; every method says how many it took out of or put into the free list.

    Args:
        blocks: blocks of the replica, all free at first.
        block_size: tokens a block.
        prefix_of: earlier request each request shares its first ``shared_tokens`` with, -1 for none.
        shared_tokens: how many.
    """

    def __init__(self, *, blocks: int, block_size: int, prefix_of: Sequence[int],
                 shared_tokens: Sequence[int]) -> None:
        self._block_size = block_size
        self._prefix_of, self._shared = prefix_of, shared_tokens
        self._queue: deque[_Range] = deque([_Range(None, 0, blocks)])
        self._runs: dict[int, _Run] = {}
        self._depth: dict[int, int] = {}
        self._paths: dict[int, list[tuple[int, int, int]]] = {}
        self._copied: dict[int, tuple[int, int]] = {}

    def _path(self, request: int) -> list[tuple[int, int, int]]:
        """``(request that owns the run, first block, end)`` from the request's own run up to the root."""
        path, end, node = [], 1 << 60, request
        while node >= 0 and end > 0:
            start = self._shared[node] // self._block_size
            if start < end:
                path.append((node, start, end))
                end = start
            node = self._prefix_of[node]
        return path

    def lookup(self, request: int, tokens: int) -> tuple[int, int]:
        """Resident blocks of the first ``tokens``, the last token's excepted, and how many of them are free."""
        hit = idle = 0
        if request not in self._runs and self._shared[request] < self._block_size:
            return hit, idle
        last = (tokens - 1) // self._block_size
        for node, start, end in reversed(self._path(request)):
            run = self._runs.get(node)
            if run is None or start >= last:
                break
            hit = min(run.resident, end, last)
            idle += max(0, hit - max(start, run.used()))
            if hit < end:
                break
        return hit, idle

    def acquire(self, request: int, hit: int) -> None:
        """Take the first ``hit`` resident blocks into use for ``request``."""
        self._depth[request] = hit
        path = self._paths[request] = self._path(request)
        for node, start, end in path:
            if start < hit:
                run = self._runs[node]
                depth = min(end, hit)
                self._reclaim(run, depth)
                run.enter(depth)

    @staticmethod
    def _reclaim(run: _Run, depth: int) -> None:
        """Take the run's blocks below ``depth`` out of the free queue, the rest stays where it is."""
        while run.free and run.free[-1].low < depth:
            shallowest = run.free[-1]
            shallowest.low = min(depth, shallowest.high)
            if shallowest.low == shallowest.high:
                run.free.pop()

    def extend(self, request: int, depth: int) -> None:
        """``request`` has filled its blocks below ``depth``; from now on others find them."""
        before = self._depth[request]
        if depth <= before:
            return
        self._depth[request] = depth
        for node, start, end in self._paths[request]:
            low, high = max(start, before), min(end, depth)
            if low >= high:
                continue
            run = self._runs.get(node) or self._runs.setdefault(node, _Run(node, start))
            if run.used() > low:
                # The whole prompt was resident, but its last block is computed again to get the first output token;
                # another request holds that block, so this copy stays out of the books.
                assert high == end
                self._copied[request] = (low, high)
                continue
            self._disown(run, low, high)
            if before > start:
                run.leave(before)
            run.enter(high)
            run.resident = max(run.resident, high)

    def _disown(self, run: _Run, low: int, high: int) -> None:
        """Free blocks of ``[low, high)`` keep their place in the queue but hold nothing: a newer copy is in use."""
        for part in [p for p in run.free if p.low < high and p.high > low]:
            place = self._queue.index(part)
            pieces = [_Range(run, max(part.low, high), part.high),
                      _Range(None, max(part.low, low), min(part.high, high)),
                      _Range(run, part.low, min(part.high, low))]
            pieces = [p for p in pieces if p.low < p.high]
            del self._queue[place]
            for offset, piece in enumerate(pieces):
                self._queue.insert(place + offset, piece)
            at = run.free.index(part)
            run.free[at:at + 1] = [p for p in pieces if p.run is run]

    def take(self, count: int) -> None:
        """Give ``count`` free blocks away, forgetting what they hold."""
        queue = self._queue
        while count:
            part = queue[0]
            taken = min(count, part.high - part.low)
            part.high -= taken
            count -= taken
            run = part.run
            if run is not None and taken:
                run.resident = part.high
            if part.low == part.high:
                queue.popleft()
                if run is not None and run.free and run.free[0] is part:
                    del run.free[0]
                    self._forget(run)

    def release(self, request: int, *, held: int, depth: int) -> int:
        """``request`` gives back its ``held`` blocks, the first ``depth`` of them full; how many became free."""
        self.extend(request, depth)
        depth = self._depth.pop(request)
        copied = self._copied.pop(request, None)
        freed = self._append(None, 0, held - depth)
        for node, start, end in self._paths.pop(request):
            mine = min(end, depth)
            if copied is not None and start < copied[1] <= end:
                freed += self._append(None, *copied)
                mine = copied[0]
            if mine <= start:
                continue
            run = self._runs[node]
            run.leave(mine)
            freed += self._append(run, run.used(), mine)
        return freed

    def _forget(self, run: _Run) -> None:
        if run.resident == run.start and not run.depths:
            del self._runs[run.owner]

    def _append(self, run: _Run | None, low: int, high: int) -> int:
        if low >= high:
            return 0
        part = _Range(run, low, high)
        self._queue.append(part)
        if run is not None:
            run.free.append(part)
        return high - low
