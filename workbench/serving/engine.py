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
from workbench.serving.records import NEVER, Ledger
from workbench.serving.workload import TICKS_PER_PS, ReplicaSpec
from workbench.stepcosts import Chunk, Ramp

__all__ = ["Replica"]

_FAR = 1 << 62


class Replica:
    """State of one replica. ``next`` is the time before which nothing happens; ``deliver`` and ``advance`` move it.

    A decoding request i that emits its last token in iteration ``last[i]`` holds
    ``prompt + output - 2 - last[i] + s`` computed tokens before iteration ``s``, so nothing about it changes from one
    iteration to the next: only the counters of the whole batch move.
    """

    def __init__(self, index: int, spec: ReplicaSpec, ledger: Ledger, ramps: dict[int, Ramp]) -> None:
        self.index, self.ledger = index, ledger
        self.next = NEVER
        self.peak_blocks = 0
        self.iterations = self.busy = self.prompt_tokens = 0
        self.sequences_sum = self.sequence_ticks = self.context_sum = 0
        self._model = spec.step_model
        self._ramps = ramps
        self._block, self._blocks = spec.block_size, spec.kv_blocks
        self._seats, self._budget = spec.max_sequences, spec.token_budget
        self._lag = 1 if spec.scheduling == "async" else 0
        self._pool = None if spec.caching == "off" else PrefixPool(
            blocks=spec.kv_blocks, block_size=spec.block_size, prefix_of=ledger.prefix_of,
            shared_tokens=ledger.shared_tokens)
        self.free = spec.kv_blocks

        self._waiting: deque[int] = deque()
        self._running: dict[int, int] = {}  # request -> tokens its last prefill computes, in order of admission
        self._draining: deque[tuple[int, int]] = deque()  # (iteration that sees its blocks free, request)
        self._heap: list[int] = []  # last iteration * requests + request
        self._last: dict[int, int] = {}
        self._generated: dict[int, int] = {}  # of preempted requests
        self._last_token: dict[int, int] = {}
        self._partial = -1
        self._partial_done = 0

        self._step = 0
        self._now = self._end = 0
        self._n = self._context = 0
        self._grown = 0  # blocks the next iteration's decoding requests already have
        self._growing = [0] * spec.block_size  # decoding requests by the iteration (mod block) that needs a block
        self._pieces: list[tuple[int, int, int]] = []  # planned iterations: (first ticks, increment, count)

    # -- driving: what the fleet calls -------------------------------------------------------------------------------

    def deliver(self, request: int, time: int) -> None:
        """``request`` arrives at ``time`` ticks, when everything before ``time`` has been decided.

        Raises:
            Infeasible: the KV cache can never hold it.
        """
        ledger = self.ledger
        tokens = ledger.prompt[request] + ledger.output[request] - 1
        if tokens > self._blocks * self._block:
            raise Infeasible(
                f"request {request} needs {-(-tokens // self._block)} KV blocks, replica {self.index} has "
                f"{self._blocks}", hint="route long requests elsewhere, or give the replica more KV cache")
        ledger.replica[request] = self.index
        if self.next == NEVER:
            self._now = self._end = self.next = max(time, self._end)
        elif self._pieces and not self._waiting:
            self._cut(time)
        self._waiting.append(request)

    def advance(self, until: int) -> None:
        """Take every decision that falls before ``until``."""
        while self.next < until:
            self._decide()

    def _decide(self) -> None:
        """Compose the next iteration, or plan a stretch of alike ones, from what is known at ``next``."""
        if self._pieces:
            self._commit()
        if self._draining:
            self._release(self._step)
        growth = self._growing[self._step % self._block]
        if growth > self.free:
            self._preempting_iteration()
        elif self._waiting or self._partial >= 0:
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
        count = self._first_last() - self._step + 1
        tight = self._n * (count // self._block + 1) > self.free
        if tight:
            count = self._enough_blocks_for(count)
        if self._draining and (tight or self._waiting):
            count = min(count, self._draining[0][0] - self._step)
        n, context = self._n, self._context
        start, base, slope = self._ramp(n)
        i = bisect_right(start, context) - 1
        pieces = self._pieces
        total = 0
        while True:
            first, increment = base[i] + slope[i] * (context - start[i]), slope[i] * n
            i += 1
            here = count
            if i < len(start):
                here = min(count, (start[i] - 1 - context) // n + 1)
            pieces.append((first, increment, here))
            total += here * first + increment * (here * (here - 1) // 2)
            count -= here
            if not count:
                break
            context += here * n
            while i + 1 < len(start) and start[i + 1] <= context:
                i += 1
        if self._lag:
            total -= first + increment * (here - 1)
        self.next = self._end + total

    def _ramp(self, n: int) -> Ramp:
        ramp = self._ramps.get(n)
        if ramp is None:
            ramp = self._ramps[n] = self._model.decode(n)
        return ramp

    def _first_last(self) -> int:
        """The earliest iteration in which a decoding request emits its last token."""
        heap, many = self._heap, self.ledger.count
        while True:
            last, request = divmod(heap[0], many)
            if self._last.get(request) == last:
                return last
            heappop(heap)

    def _growth(self, count: int) -> int:
        """Blocks that the decoding requests take over the next ``count`` iterations."""
        cycles, rest = divmod(count, self._block)
        at = self._step % self._block
        growing = self._growing
        blocks = cycles * self._n + sum(growing[at:at + rest])
        if at + rest > self._block:
            blocks += sum(growing[:at + rest - self._block])
        return blocks

    def _enough_blocks_for(self, count: int) -> int:
        """Most of the next ``count`` iterations that the free blocks cover."""
        have = self.free + self._grown
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
        elapsed = self._end
        for at, (first, increment, count) in enumerate(self._pieces):
            whole = count * first + increment * (count * (count - 1) // 2)
            if elapsed + whole < time:
                elapsed += whole
                continue
            low, high = 0, count
            while low < high:
                middle = (low + high) // 2
                if elapsed + middle * first + increment * (middle * (middle - 1) // 2) < time:
                    low = middle + 1
                else:
                    high = middle
            self.next = elapsed + low * first + increment * (low * (low - 1) // 2)
            low += self._lag
            if low <= count:
                self._pieces[at:] = [(first, increment, low)]
            else:
                # The iteration in flight at the decision is the first of the next piece.
                following = self._pieces[at + 1]
                self._pieces[at:] = [(first, increment, count), (following[0], following[1], 1)]
            return

    def _commit(self) -> None:
        """Carry out the planned iterations."""
        n, ledger = self._n, self.ledger
        total = iterations = 0
        for first, increment, count in self._pieces:
            ledger.gap(n, first, increment, count)
            total += count * first + increment * (count * (count - 1) // 2)
            iterations += count
        if self._draining and iterations > 1:
            # The blocks of just finished requests come back before the second iteration.
            early = self._growth(1)
            self._take(early - self._grown)
            self._grown = early
            self._note_peak()
            self._release(self._step + 1)
        self._take(self._growth(iterations) - self._grown)
        self._grown = 0
        self._pieces.clear()
        self.iterations += iterations
        self.busy += total
        self.sequences_sum += n * iterations
        self.sequence_ticks += n * total
        self.context_sum += iterations * self._context + n * (iterations * (iterations - 1) // 2)
        self._context += n * iterations
        self._step += iterations
        self._end += total
        self._now = self._end - (first + increment * (count - 1)) if self._lag else self._end
        self.next = self._now
        self._finish([])

    # -- iterations with prompts -------------------------------------------------------------------------------------

    def _prompt_iteration(self, growth: int) -> None:
        """Continue the started prompt, admit waiting requests, and run that iteration; plan decoding if none fits."""
        budget = self._budget - self._n
        partial, chunks, entering = self._partial, [], []
        if partial >= 0 and budget:
            done, take = self._partial_done, min(budget, self._running[partial] - self._partial_done)
            blocks = -(-(done + take) // self._block) - -(-done // self._block)
            if growth + blocks > self.free:
                self._preempting_iteration()
                return
            self._take(growth + blocks)
            budget -= take
            chunks.append(Chunk(take, done))
            if self._prefilled(partial, done + take):
                entering.append(partial)
        else:
            self._take(growth)
        self._grown = growth
        while self._waiting and budget and len(self._running) < self._seats:
            request = self._waiting[0]
            chunk = self._admit(request, budget)
            if chunk is None:
                break
            budget -= chunk.tokens
            chunks.append(chunk)
            if self._prefilled(request, chunk.history + chunk.tokens):
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
        target = ledger.prompt[request] + self._generated.get(request, 0)
        hit = idle = 0
        if pool is not None:
            hit, idle = pool.lookup(request, target)
        if -(-target // size) - hit + idle > self.free:
            return None
        self._waiting.popleft()
        if pool is not None:
            pool.acquire(request, hit)
            self.free -= idle
            ledger.hits[request] += hit * size
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
        ticks = self._model.mixed(n, context, chunks) if chunks else self._ramp(n)(context)
        if n:
            self.ledger.gap(n, ticks, 0, 1)
        self._grown = 0
        self.iterations += 1
        self.busy += ticks
        self.sequences_sum += n
        self.sequence_ticks += n * ticks
        self.context_sum += context
        self.prompt_tokens += sum(c.tokens for c in chunks)
        self._context += n
        self._step += 1
        start = self._end
        self._end = start + ticks
        self._now = self.next = start if self._lag else self._end
        self._finish(entering)

    # -- tokens ------------------------------------------------------------------------------------------------------

    def _finish(self, entering: list[int]) -> None:
        """Hand out the tokens of the iteration that ends at ``_end``: completions, and first tokens of ``entering``."""
        last, heap, many = self._step - 1, self._heap, self.ledger.count
        finished = []
        bound = self._step * many
        while heap and heap[0] < bound:
            request = heappop(heap) % many
            if self._last.get(request) == last:
                self._leave(request)
                finished.append(request)
        finished += [request for request in entering if self._enter(request, last)]
        if len(finished) > 1 and self._pool is not None:
            place = {request: at for at, request in enumerate(self._running)}
            finished.sort(key=place.__getitem__)
        for request in finished:
            self.ledger.finished(request, self._end)
            self._draining.append((self._step + self._lag, request))
        self._note_peak()

    def _note_peak(self) -> None:
        used = self._blocks - self.free
        if used > self.peak_blocks:
            self.peak_blocks = used

    def _enter(self, request: int, step: int) -> bool:
        """The request's prompt is complete and yields a token; whether that was its last."""
        ledger, target = self.ledger, self._running[request]
        generated = self._generated.pop(request, 0)
        if generated:
            ledger.single_gap(self._end - self._last_token.pop(request))
        else:
            ledger.first[request] = self._end // TICKS_PER_PS
        left = ledger.output[request] - generated - 1
        if not left:
            return True
        self._last[request] = step + left
        heappush(self._heap, (step + left) * ledger.count + request)
        self._n += 1
        self._context += target
        self._growing[(step + 1 - target) % self._block] += 1
        return False

    def _leave(self, request: int) -> int:
        """Take a decoding request out of the batch; its computed tokens."""
        ledger, last = self.ledger, self._last.pop(request)
        length = ledger.prompt[request] + ledger.output[request]
        computed = length - 2 - last + self._step
        self._n -= 1
        self._context -= computed
        self._growing[(last + 2 - length) % self._block] -= 1
        return computed

    # -- blocks ------------------------------------------------------------------------------------------------------

    def _take(self, blocks: int) -> None:
        self.free -= blocks
        if self._pool is not None and blocks:
            self._pool.take(blocks)

    def _give_back(self, request: int, *, computed: int, cached: int) -> None:
        """Free the blocks of ``computed`` tokens; the first ``cached`` tokens may be found again."""
        held = -(-computed // self._block)
        if self._pool is not None:
            held = self._pool.release(request, held=held, depth=cached // self._block)
        self.free += held

    def _release(self, step: int) -> None:
        """Free the blocks of finished requests that iteration ``step`` sees as free."""
        draining, ledger = self._draining, self.ledger
        while draining and draining[0][0] <= step:
            request = draining.popleft()[1]
            del self._running[request]
            tokens = ledger.prompt[request] + ledger.output[request] - 1
            self._give_back(request, computed=tokens, cached=tokens)

    def _preempting_iteration(self) -> None:
        """Serve the running requests one by one, preempting from the end where blocks run out; admit nobody."""
        order, budget = list(self._running), self._budget
        chunks: list[Chunk] = []
        entering = []
        at = 0
        while at < len(order):
            request, tokens, blocks = order[at], 1, 0
            if request in self._last:
                length = self.ledger.prompt[request] + self.ledger.output[request]
                blocks = int((length - 2 - self._last[request] + self._step) % self._block == 0)
            elif request == self._partial:
                tokens = min(budget, self._running[request] - self._partial_done)
                blocks = -(-(self._partial_done + tokens) // self._block) - -(-self._partial_done // self._block)
            else:
                tokens = 0
            while blocks > self.free and len(order) > at:
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
            computed = self._partial_done
            self._partial = -1
            self._give_back(request, computed=computed, cached=computed)
        elif request in self._last:
            self._generated[request] = ledger.output[request] - (self._last[request] - self._step + 1)
            self._last_token[request] = self._end
            computed = self._leave(request)
            self._give_back(request, computed=computed, cached=max(target, computed - self._lag))
        else:
            computed = ledger.prompt[request] + ledger.output[request] - 1
            self._draining = deque(d for d in self._draining if d[1] != request)
            self._give_back(request, computed=computed, cached=max(target, computed - self._lag))
            return
        self._waiting.appendleft(request)
