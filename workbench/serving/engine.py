"""One replica with continuous batching, advanced over whole stretches of decoding in closed form.

Scheduling after vLLM V1 (0.19): each iteration serves the running requests first, in order of admission (one token a
decoding request, then the rest of a started prompt), then admits waiting ones first come first served while the token
budget, the seats and the free blocks last; a request enters only if its whole input fits; when a running request finds
no block, the last admitted one loses all its blocks and returns to the head of the queue (nothing is admitted in that
iteration) and later recomputes prompt and generated tokens. The last chunk of a prompt yields the first token.

Iteration ``s`` runs from ``_end`` on; ``_now`` is when it is composed: at ``_end`` when scheduling is "sync", at the
start of the iteration before when "async". Between two changes of the batch, the n decoding requests hold K, K + n,
K + 2n, … tokens, so k iterations on one piece of the cost ramp take an arithmetic series of ticks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from heapq import heappop, heappush

from workbench.errors import Infeasible
from workbench.serving.kvcache import PrefixPool
from workbench.serving.records import NEVER, Ledger, pack_stretch
from workbench.serving.workload import TICKS_PER_PS, ReplicaSpec
from workbench.stepcosts import Chunk, Ramp

__all__ = ["Replica"]

_FAR = 1 << 62


class Replica:
    """State of one replica. ``next`` is the time before which nothing happens; ``deliver`` and ``advance`` move it.

    A decoding request i that emits its last token in iteration ``last[i]`` holds ``total[i] - 1 - last[i] + s`` tokens
    before iteration ``s``, so nothing about it changes from one iteration to the next: only the counters of the whole
    batch move.
    """

    def __init__(self, index: int, spec: ReplicaSpec, ledger: Ledger, ramps: dict[int, Ramp]) -> None:
        self.index, self.ledger = index, ledger
        self.next = NEVER
        self.stretches = bytearray()
        self.prompt_tokens = 0
        self._model, self._ramps = spec.step_model, ramps
        self._block, self._blocks = spec.block_size, spec.kv_blocks
        self._seats, self._budget = spec.max_sequences, spec.token_budget
        self._lag = 1 if spec.scheduling == "async" else 0
        self._pool = None if spec.caching == "off" else PrefixPool(
            blocks=spec.kv_blocks, block_size=spec.block_size, prefix_of=ledger.prefix_of,
            shared_tokens=ledger.shared_tokens)
        self._free = self._fewest = spec.kv_blocks

        self._waiting: deque[int] = deque()
        self._running: dict[int, int] = {}  # request -> tokens its last prefill computes, in order of admission
        self._draining: deque[tuple[int, int]] = deque()  # (iteration that sees its blocks free, request)
        self._heap: list[int] = []  # last iteration * requests + request
        self._stale = 0  # entries of the heap whose request was preempted
        self._many = ledger.count
        self._last: dict[int, int] = {}
        self._generated: dict[int, int] = {}  # of preempted requests
        self._last_token: dict[int, int] = {}
        self._partial = -1
        self._partial_done = 0

        self._step = 0
        self._now = self._end = 0
        self._n = self._context = 0
        self._growing = [0] * spec.block_size  # decoding requests by the iteration (mod block) that needs a block
        self._grown = 0  # blocks the next iteration's decoding requests already have
        self._pieces: list[tuple[int, int, int]] = []  # planned iterations: (first ticks, increment, count)
        self._planned = self._planned_ticks = 0

    @property
    def peak_blocks(self) -> int:
        """Most blocks in use so far."""
        return self._blocks - self._fewest

    # -- driving: what the fleet calls -------------------------------------------------------------------------------

    def deliver(self, request: int, time: int) -> None:
        """``request`` arrives at ``time`` ticks, when everything before ``time`` has been decided.

        Raises:
            Infeasible: the KV cache can never hold it.
        """
        ledger = self.ledger
        if ledger.total[request] > self._blocks * self._block:
            raise Infeasible(
                f"request {request} needs {-(-ledger.total[request] // self._block)} KV blocks, replica {self.index} "
                f"has {self._blocks}", hint="route long requests elsewhere, or give the replica more KV cache")
        ledger.replica[request] = self.index
        if self.next == NEVER:
            self._now = self._end = self.next = max(time, self._end)
        elif self._planned and not self._waiting:
            self._cut(time)
        self._waiting.append(request)

    def advance(self, until: int) -> None:
        """Take every decision that falls before ``until``.

        A decision composes the next iteration, or plans a stretch of alike ones, from what is known at ``next``.
        """
        waiting, growing, size = self._waiting, self._growing, self._block
        while self.next < until:
            if self._planned:
                self._commit()
            step = self._step
            if self._draining and self._draining[0][0] <= step:
                self._release(step)
            growth = growing[step % size]
            if growth > self._free:
                self._preempting_iteration()
            elif waiting or self._partial >= 0:
                self._prompt_iteration(growth)
            elif self._n:
                self._plan()
            else:
                self._idle()

    def _idle(self) -> None:
        """Nothing to run: wait for the iteration in flight, if any, and then for an arrival."""
        if self._draining:
            self._release(_FAR)
            self._now = self.next = self._end
        else:
            assert not self._waiting
            self.next = NEVER

    # -- stretches of decoding ---------------------------------------------------------------------------------------

    def _plan(self) -> None:
        """Plan decode-only iterations up to the next completion, shortage of blocks or return of blocks."""
        n, context = self._n, self._context
        count = (self._drop_stale() if self._stale else self._heap[0] // self._many) - self._step + 1
        tight = n * (count // self._block + 1) > self._free
        if tight:
            count = self._enough_blocks_for(count)
        if self._draining and (tight or self._waiting):
            count = min(count, self._draining[0][0] - self._step)
        start, base, slope = self._ramps.get(n) or self._ramp(n)
        i = bisect_right(start, context) - 1
        first, increment = base[i] + slope[i] * (context - start[i]), slope[i] * n
        self._planned = count
        i += 1
        if i == len(start) or context + n * (count - 1) < start[i]:
            self._pieces = [(first, increment, count)]
            ticks = count * first + increment * (count * (count - 1) >> 1)
            last = first + increment * (count - 1)
        else:
            self._pieces = _along(Ramp(start, base, slope), n=n, context=context, count=count)
            ticks = sum(c * f + d * (c * (c - 1) >> 1) for f, d, c in self._pieces)
            first, increment, count = self._pieces[-1]
            last = first + increment * (count - 1)
        self._planned_ticks = ticks
        self.next = self._end + ticks - last if self._lag else self._end + ticks

    def _ramp(self, n: int) -> Ramp:
        """Cost of decoding n requests, kept for all replicas with this step model."""
        ramp = self._ramps[n] = self._model.decode(n)
        return ramp

    def _drop_stale(self) -> int:
        """The earliest iteration in which a decoding request emits its last token, by a live entry of the heap."""
        heap, many = self._heap, self._many
        while True:
            last, request = divmod(heap[0], many)
            if self._last.get(request) == last:
                return last
            heappop(heap)
            self._stale -= 1

    def _growth(self, count: int) -> int:
        """Blocks that the decoding requests take over the next ``count`` iterations."""
        size, growing = self._block, self._growing
        at, blocks = self._step % size, 0
        if count >= size:
            blocks = count // size * self._n
            count %= size
        rest = at + count - size
        if rest > 0:
            return blocks + sum(growing[at:]) + sum(growing[:rest])
        return blocks + sum(growing[at:at + count])

    def _enough_blocks_for(self, count: int) -> int:
        """Most of the next ``count`` iterations that the free blocks cover."""
        have = self._free + self._grown
        low, high = 1, count
        while low < high:
            middle = (low + high + 1) // 2
            if self._growth(middle) <= have:
                low = middle
            else:
                high = middle - 1
        return low

    def _cut(self, time: int) -> None:
        """Shorten the planned stretch to end with the first decision at or after ``time``."""
        before, elapsed = 0, self._end
        for at, (first, increment, count) in enumerate(self._pieces):
            whole = count * first + increment * (count * (count - 1) >> 1)
            if elapsed + whole < time:
                elapsed += whole
                before += count
                continue
            here = _iterations_until(time - elapsed, first=first, increment=increment, most=count)
            self.next = elapsed + here * first + increment * (here * (here - 1) >> 1)
            planned = before + here + self._lag
            if planned < self._planned:
                # The iteration in flight at the decision may be the first of the next piece.
                following = self._pieces[at + 1:at + 2] if here + self._lag > count else []
                here = min(here + self._lag, count)
                self._pieces[at:] = [(first, increment, here), *[(f, d, 1) for f, d, _ in following]]
                self._planned = planned
                self._planned_ticks = (elapsed - self._end + here * first + increment * (here * (here - 1) >> 1)
                                       + (following[0][0] if following else 0))
            return

    def _commit(self) -> None:
        """Carry out the planned iterations."""
        n, context, count, step = self._n, self._context, self._planned, self._step
        for first, increment, part in self._pieces:
            self.stretches += pack_stretch(n, first, increment, part, context)
            context += n * part
        if self._draining and count > 1:
            # The blocks of just finished requests come back before the second iteration.
            early = self._growth(1)
            self._take(early - self._grown)
            self._grown = early
            self._release(step + 1)
        at = step % self._block
        if count <= self._block - at:
            blocks = sum(self._growing[at:at + count]) - self._grown
        else:
            blocks = self._growth(count) - self._grown
        if blocks:
            self._take(blocks)
        self._grown = self._planned = 0
        self._context = context
        self._step = step + count
        self._end += self._planned_ticks
        self._now = self.next
        if self._heap[0] < self._step * self._many:
            self._finish([])

    # -- iterations with prompts -------------------------------------------------------------------------------------

    def _prompt_iteration(self, growth: int) -> None:
        """Continue the started prompt, admit waiting requests, and run that iteration; plan decoding if none fits."""
        budget = self._budget - self._n
        partial = self._partial
        chunks: list[Chunk] = []
        entering: list[int] = []
        if partial >= 0 and budget:
            done, take = self._partial_done, min(budget, self._running[partial] - self._partial_done)
            blocks = -(-(done + take) // self._block) - -(-done // self._block)
            if growth + blocks > self._free:
                self._preempting_iteration()
                return
            self._take(growth + blocks)
            budget -= take
            chunks.append(Chunk(take, done))
            if self._prefilled(partial, done + take):
                entering.append(partial)
        elif growth:
            self._take(growth)
        self._grown = growth
        waiting, running = self._waiting, self._running
        while waiting and budget and len(running) < self._seats:
            request = waiting[0]
            chunk = self._admit(request, budget)
            if chunk is None:
                break
            tokens, history = chunk
            budget -= tokens
            chunks.append(chunk)
            if self._prefilled(request, history + tokens):
                entering.append(request)
        if chunks:
            self._iterate(chunks, entering)
        elif self._n:
            self._plan()
        else:
            self._idle()

    def _admit(self, request: int, budget: int) -> Chunk | None:
        """Let the head of the queue in and give it blocks for its first chunk, if its whole input fits."""
        ledger, size, pool = self.ledger, self._block, self._pool
        target = ledger.prompt[request]
        if self._generated:
            target += self._generated.get(request, 0)
        hit = idle = 0
        if pool is not None:
            hit, idle = pool.lookup(request, target)
        if -(-target // size) - hit + idle > self._free:
            return None
        self._waiting.popleft()
        if hit and pool is not None:
            self._free -= idle
            ledger.hits[request] += hit * size
        if pool is not None:
            pool.acquire(request, hit)
        history = hit * size
        tokens = min(budget, target - history)
        self._take(-(-(history + tokens) // size) - hit)
        if ledger.scheduled[request] < 0:
            ledger.scheduled[request] = self._now // TICKS_PER_PS
        self._running[request] = target
        return Chunk(tokens, history)

    def _prefilled(self, request: int, done: int) -> bool:
        """Note that ``done`` tokens of the request's prompt are computed; whether that is all of it."""
        if self._pool is not None:
            self._pool.extend(request, done // self._block)
        if done < self._running[request]:
            self._partial, self._partial_done = request, done
            return False
        self._partial = -1
        return True

    def _iterate(self, chunks: list[Chunk], entering: list[int]) -> None:
        """Run one iteration: all decoding requests, and ``chunks`` of prompts, of which ``entering`` are complete."""
        n, context = self._n, self._context
        ticks = self._model.mixed(n, context, chunks) if chunks else (self._ramps.get(n) or self._ramp(n))(context)
        self.stretches += pack_stretch(n, ticks, 0, 1, context)
        for tokens, _ in chunks:
            self.prompt_tokens += tokens
        self._grown = 0
        self._context = context + n
        self._step += 1
        start = self._end
        self._end = end = start + ticks
        self._now = self.next = start if self._lag else end
        if entering or (n and self._heap[0] < self._step * self._many):
            self._finish(entering)

    # -- tokens ------------------------------------------------------------------------------------------------------

    def _finish(self, entering: list[int]) -> None:
        """Hand out the tokens of the iteration that ends at ``_end``: completions, and first tokens of ``entering``."""
        heap, many, ends = self._heap, self._many, self._last
        last, bound = self._step - 1, self._step * self._many
        finished = []
        while heap and heap[0] < bound:
            request = heappop(heap) % many
            if self._stale and ends.get(request) != last:
                self._stale -= 1
                continue
            del ends[request]
            total = self.ledger.total[request]
            self._n -= 1
            self._context -= total
            self._growing[(last + 1 - total) % self._block] -= 1
            finished.append(request)
        if entering:
            finished += [request for request in entering if self._enter(request, last)]
        if not finished:
            return
        if len(finished) > 1 and self._pool is not None:
            place = {request: at for at, request in enumerate(self._running)}
            finished.sort(key=place.__getitem__)
        due, end, ledger = self._step + self._lag, self._end, self.ledger
        for request in finished:
            ledger.finish[request] = end // TICKS_PER_PS
            if ledger.done is not None:
                heappush(ledger.done, (end, request))
            self._draining.append((due, request))

    def _enter(self, request: int, step: int) -> bool:
        """The request's prompt is complete and yields a token; whether that was its last."""
        ledger, target = self.ledger, self._running[request]
        generated = self._generated.pop(request, 0) if self._generated else 0
        if generated:
            ledger.single_gap(self._end - self._last_token.pop(request))
        else:
            ledger.first[request] = self._end // TICKS_PER_PS
        last = step + ledger.output[request] - generated - 1
        if last == step:
            return True
        self._last[request] = last
        heappush(self._heap, last * self._many + request)
        self._n += 1
        self._context += target
        self._growing[(step + 1 - target) % self._block] += 1
        return False

    def _leave(self, request: int) -> int:
        """Take a decoding request out of the batch before its end; its computed tokens."""
        last, total = self._last.pop(request), self.ledger.total[request]
        computed = total - 1 - last + self._step
        self._n -= 1
        self._context -= computed
        self._growing[(last + 1 - total) % self._block] -= 1
        return computed

    # -- blocks ------------------------------------------------------------------------------------------------------

    def _take(self, blocks: int) -> None:
        self._free -= blocks
        if self._free < self._fewest:
            self._fewest = self._free
        if self._pool is not None and blocks:
            self._pool.take(blocks)

    def _give_back(self, request: int, *, computed: int, cached: int) -> None:
        """Free the blocks of ``computed`` tokens; the first ``cached`` tokens may be found again."""
        held = -(-computed // self._block)
        if self._pool is not None:
            held = self._pool.release(request, held=held, depth=cached // self._block)
        self._free += held

    def _release(self, step: int) -> None:
        """Free the blocks of finished requests that iteration ``step`` sees as free."""
        draining, total = self._draining, self.ledger.total
        while draining and draining[0][0] <= step:
            request = draining.popleft()[1]
            del self._running[request]
            self._give_back(request, computed=total[request], cached=total[request])

    def _preempting_iteration(self) -> None:
        """Serve the running requests one by one, preempting from the end where blocks run out; admit nobody."""
        order, budget = list(self._running), self._budget
        chunks: list[Chunk] = []
        entering = []
        at = 0
        while at < len(order):
            request, tokens, blocks = order[at], 1, 0
            if request in self._last:
                computed = self.ledger.total[request] - 1 - self._last[request] + self._step
                blocks = int(computed % self._block == 0)
            elif request == self._partial:
                tokens = min(budget, self._running[request] - self._partial_done)
                blocks = -(-(self._partial_done + tokens) // self._block) - -(-self._partial_done // self._block)
            else:
                tokens = 0
            while blocks > self._free and len(order) > at:
                self._preempt(order.pop())
            if len(order) == at:
                break
            self._take(blocks)
            budget -= tokens
            if request == self._partial and tokens:
                chunks.append(Chunk(tokens, self._partial_done))
                if self._prefilled(request, self._partial_done + tokens):
                    entering.append(request)
            at += 1
        if self._n or chunks:
            self._iterate(chunks, entering)
        else:
            self._idle()

    def _preempt(self, request: int) -> None:
        """Take all blocks from a running request; unless it has just finished, it waits at the head of the queue."""
        ledger, target = self.ledger, self._running.pop(request)
        ledger.preemptions[request] += 1
        if request == self._partial:
            self._partial = -1
            computed = cached = self._partial_done
        elif request in self._last:
            self._generated[request] = ledger.output[request] - (self._last[request] - self._step + 1)
            self._last_token[request] = self._end
            self._stale += 1
            computed = self._leave(request)
            cached = max(target, computed - self._lag)
        else:
            computed = ledger.total[request]
            cached = max(target, computed - self._lag)
            self._draining = deque(d for d in self._draining if d[1] != request)
        self._give_back(request, computed=computed, cached=cached)
        if ledger.finish[request] < 0:
            self._waiting.appendleft(request)


def _along(ramp: Ramp, *, n: int, context: int, count: int) -> list[tuple[int, int, int]]:
    """``count`` iterations over several pieces of the ramp, as (first ticks, increment, count) each."""
    start, base, slope = ramp
    pieces = []
    i = bisect_right(start, context) - 1
    while count:
        while i + 1 < len(start) and start[i + 1] <= context:
            i += 1
        here = count if i + 1 == len(start) else min(count, (start[i + 1] - 1 - context) // n + 1)
        pieces.append((base[i] + slope[i] * (context - start[i]), slope[i] * n, here))
        count -= here
        context += here * n
    return pieces


def _iterations_until(ticks: int, *, first: int, increment: int, most: int) -> int:
    """Fewest of ``most`` iterations that together last at least ``ticks``."""
    low, high = 0, most
    if increment >= 0 and ticks > 0:
        # None is shorter than the first, so no more than ``high``; none of those is longer than the last of them.
        high = min(most, -(-ticks // first))
        low = -(-ticks // (first + increment * (high - 1)))
    while low < high:
        middle = (low + high) >> 1
        if middle * first + increment * (middle * (middle - 1) >> 1) < ticks:
            low = middle + 1
        else:
            high = middle
    return low
