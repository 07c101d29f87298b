"""The same replica one iteration and one block at a time: the slow oracle of ``engine`` and ``kvcache``.

Written after vLLM V1's scheduler as it is: every request carries its own counters and its own list of blocks, every
block its own content and reference count, every iteration walks all running requests. It shares no code with the fast
engine, and a test holds that both write down the same integers.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from heapq import heappush

from workbench.errors import Infeasible
from workbench.serving.records import NEVER, Ledger, pack_stretch
from workbench.serving.workload import TICKS_PER_PS, ReplicaSpec
from workbench.stepcosts import Chunk, Ramp

__all__ = ["StepwiseReplica"]


@dataclass(slots=True, eq=False)
class _Request:
    """``known`` tokens exist (prompt, seen outputs), ``pending`` outputs are in flight, ``computed`` are in cache."""

    id: int
    prompt: int
    output: int
    known: int
    pending: int = 0
    computed: int = 0
    target: int = 0
    emitted: int = 0
    indexed: int = 0
    last_token: int = 0
    blocks: list[int] = field(default_factory=list)

    @property
    def exhausted(self) -> bool:
        """The last output is in flight already."""
        return self.pending > 0 and self.computed + 2 - self.pending >= self.prompt + self.output


class _Blocks:
    """Blocks with content, reference counts and a free list in order of release."""

    def __init__(self, spec: ReplicaSpec, ledger: Ledger) -> None:
        self.size, self.caching, self.ledger = spec.block_size, spec.caching == "prefix", ledger
        self.free: OrderedDict[int, None] = OrderedDict.fromkeys(range(spec.kv_blocks))
        self.users = [0] * spec.kv_blocks
        self.content: list[tuple[int, int] | None] = [None] * spec.kv_blocks
        self.index: dict[tuple[int, int], int] = {}
        self.most_used = 0

    def key(self, request: int, block: int) -> tuple[int, int]:
        """Who first had this block's content: the deepest ancestor that shares it."""
        while block < self.ledger.shared_tokens[request] // self.size:
            request = self.ledger.prefix_of[request]
        return request, block

    def lookup(self, request: _Request) -> list[int]:
        """Resident blocks of the request's tokens but the last."""
        found: list[int] = []
        if self.caching:
            for block in range((request.known - 1) // self.size):
                place = self.index.get(self.key(request.id, block))
                if place is None:
                    break
                found.append(place)
        return found

    def touch(self, places: list[int]) -> None:
        for place in places:
            if not self.users[place]:
                del self.free[place]
            self.users[place] += 1
        self.most_used = max(self.most_used, len(self.users) - len(self.free))

    def new(self, count: int) -> list[int]:
        places = [self.free.popitem(last=False)[0] for _ in range(count)]
        for place in places:
            self.users[place] = 1
            content = self.content[place]
            if content is not None:
                del self.index[content]
                self.content[place] = None
        self.most_used = max(self.most_used, len(self.users) - len(self.free))
        return places

    def fill(self, request: _Request, tokens: int) -> None:
        """Index the request's blocks that ``tokens`` fill."""
        if not self.caching:
            return
        for block in range(request.indexed, tokens // self.size):
            key, place = self.key(request.id, block), request.blocks[block]
            other = self.index.get(key)
            if other is not None and self.users[other]:
                continue
            if other is not None:
                self.content[other] = None
            self.index[key], self.content[place] = place, key
        request.indexed = max(request.indexed, tokens // self.size)

    def drop(self, request: _Request) -> None:
        for place in reversed(request.blocks):
            self.users[place] -= 1
            if not self.users[place]:
                self.free[place] = None
        request.blocks = []
        request.indexed = 0


class StepwiseReplica:
    """One replica; the same interface as ``engine.Replica``."""

    def __init__(self, index: int, spec: ReplicaSpec, ledger: Ledger, ramps: dict[int, Ramp]) -> None:
        self.index, self.ledger, self.spec = index, ledger, spec
        self.next = NEVER
        self.stretches = bytearray()
        self.prompt_tokens = 0
        self._ramps = ramps
        self._blocks = _Blocks(spec, ledger)
        self._waiting: list[_Request] = []
        self._running: list[_Request] = []
        self._in_flight: list[tuple[int, list[_Request]]] = []  # (end, requests that get a token then)
        self._end = 0
        self._left = 0  # tokens of the budget not yet given out in this iteration

    @property
    def peak_blocks(self) -> int:
        """Most blocks in use so far."""
        return self._blocks.most_used

    def deliver(self, request: int, time: int) -> None:
        """See ``engine.Replica.deliver``."""
        prompt, output = self.ledger.prompt[request], self.ledger.output[request]
        if prompt + output - 1 > self.spec.kv_blocks * self.spec.block_size:
            raise Infeasible(f"request {request} never fits replica {self.index}")
        self.ledger.replica[request] = self.index
        if self.next == NEVER:
            self.next = self._end = max(time, self._end)
        self._waiting.append(_Request(request, prompt, output, known=prompt))

    def advance(self, until: int) -> None:
        """See ``engine.Replica.advance``."""
        while self.next < until:
            self._decide(self.next)

    def _decide(self, now: int) -> None:
        self._receive(now)
        self._left = self.spec.token_budget
        scheduled, preempted = self._serve_running(now)
        if not preempted:
            scheduled += self._admit_waiting(now)
        if scheduled:
            start = self._end
            self._run(scheduled)
            self.next = start if self.spec.scheduling == "async" else self._end
        else:
            self.next = self._end if self._in_flight else NEVER

    def _receive(self, now: int) -> None:
        """Take in the outputs of iterations that have ended."""
        while self._in_flight and self._in_flight[0][0] <= now:
            _, emitting = self._in_flight.pop(0)
            for request in emitting:
                request.pending -= 1
                request.known += 1
                running = request in self._running
                if running:
                    self._blocks.fill(request, request.computed - request.pending)
                if request.known == request.prompt + request.output:
                    if running:
                        self._running.remove(request)
                        self._blocks.drop(request)
                    else:
                        self._waiting.remove(request)

    def _needed(self, request: _Request, tokens: int) -> int:
        return -(-(request.computed + tokens) // self.spec.block_size) - len(request.blocks)

    def _give(self, request: _Request, tokens: int) -> tuple[_Request, Chunk]:
        self._blocks_for(request, tokens)
        chunk = Chunk(tokens, request.computed)
        request.computed += tokens
        self._blocks.fill(request, min(request.computed, request.known))
        self._left -= tokens
        return request, chunk

    def _blocks_for(self, request: _Request, tokens: int) -> None:
        request.blocks += self._blocks.new(max(0, self._needed(request, tokens)))

    def _serve_running(self, now: int) -> tuple[list[tuple[_Request, Chunk]], bool]:
        scheduled: list[tuple[_Request, Chunk]] = []
        preempted = False
        at = 0
        while at < len(self._running) and self._left:
            request = self._running[at]
            tokens = min(request.known + request.pending - request.computed, self._left)
            if request.exhausted or not tokens:
                at += 1
                continue
            while self._needed(request, tokens) > len(self._blocks.free):
                victim = self._running.pop()
                preempted = True
                self.ledger.preemptions[victim.id] += 1
                self._blocks.drop(victim)
                victim.computed = 0
                self._waiting.insert(0, victim)
                if victim is request:
                    return scheduled, True
            scheduled.append(self._give(request, tokens))
            at += 1
        return scheduled, preempted

    def _admit_waiting(self, now: int) -> list[tuple[_Request, Chunk]]:
        scheduled = []
        while self._waiting and self._left and len(self._running) < self.spec.max_sequences:
            request = self._waiting[0]
            hit = self._blocks.lookup(request)
            idle = sum(not self._blocks.users[place] for place in hit)
            if -(-request.known // self.spec.block_size) - len(hit) + idle > len(self._blocks.free):
                break
            del self._waiting[0]
            self._blocks.touch(hit)
            request.blocks = list(hit)
            request.computed = len(hit) * self.spec.block_size
            request.indexed = len(hit)
            request.target = request.known
            self.ledger.hits[request.id] += request.computed
            if self.ledger.scheduled[request.id] < 0:
                self.ledger.scheduled[request.id] = now // TICKS_PER_PS
            self._running.append(request)
            scheduled.append(self._give(request, min(request.known - request.computed, self._left)))
        return scheduled

    def _run(self, scheduled: list[tuple[_Request, Chunk]]) -> None:
        decoding = [chunk for request, chunk in scheduled if chunk.history >= request.target]
        chunks = [chunk for request, chunk in scheduled if chunk.history < request.target]
        n, context = len(decoding), sum(chunk.history for chunk in decoding)
        model = self.spec.step_model
        ticks = model.mixed(n, context, chunks) if chunks else model.decode(n)(context)
        self._end += ticks
        emitting = [request for request, _ in scheduled if request.computed >= request.target]
        for request in emitting:
            request.pending += 1
            request.emitted += 1
            if request.emitted == 1:
                self.ledger.first[request.id] = self._end // TICKS_PER_PS
            else:
                self.ledger.single_gap(self._end - request.last_token)
            request.last_token = self._end
            if request.emitted == request.output:
                self.ledger.finish[request.id] = self._end // TICKS_PER_PS
                if self.ledger.done is not None:
                    heappush(self.ledger.done, (self._end, request.id))
        self._in_flight.append((self._end, emitting))
        self.stretches += pack_stretch(n, ticks, 0, 1, context)
        self.prompt_tokens += sum(chunk.tokens for chunk in chunks)
