"""Candidate kernels of a primitive graph, each structure once.

Paper: Korch, arXiv 2406.09465, section 4.2, finds convex sets as differences of execution states (down-sets). Here each
kernel is grown backwards from the primitive that makes its output: a member's operand is either read from memory or
made inside, by one of its producers. Sets are bit masks and met once. With ``convex`` this gives the paper's kernels (a
convex set with one sink has all its prefixes, latest member first, convex); ``cone`` drops the test: a member that
somebody outside also needs is computed twice, and a tensor between two members may come from outside.
Convexity is judged in the captured program; tensors of rewrites by their own producers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from planners.orchestration.candidates import (
    Candidate,
    Structure,
    call_text,
    candidate,
    digest_of,
    stored_text,
    stored_value,
    structure,
)
from planners.orchestration.fusion import FusionNode, greedy_groups
from planners.orchestration.graph import GraphIndex, PrimitiveGraph
from planners.orchestration.masks import bits
from planners.orchestration.problem import Limits
from workbench.spec import dump

__all__ = ["Grown", "Kernels", "enumerate_kernels"]


@dataclass(frozen=True, slots=True)
class Grown:
    """A candidate by numbers: masks of primitives and of tensors."""

    members: int
    reads: int
    """Tensors read from outside that somebody must have made."""
    makes: tuple[int, ...]
    """Tensors stored."""
    kind: int
    """Number of its structure."""


@dataclass(frozen=True)
class Kernels:
    """All candidates of a graph."""

    index: GraphIndex
    tensors: tuple[str, ...]
    """Names of the tensors that primitives make, by number."""
    grown: tuple[Grown, ...]
    capped: int
    """Primitives from which more kernels could have been grown than ``per_output`` allows."""
    needed: int
    """Primitives of the captured program that its outputs need (a mask)."""
    fused: tuple[Grown, ...]
    """What greedy fusion makes of the captured program; none without ``whole``."""
    program: Grown | None
    """The whole captured program; none without ``whole``."""
    seeds: frozenset[int]
    """Structures that profiling starts with: single primitives, fused groups, components, the whole program."""
    _walker: _Walker = field(repr=False)
    _examples: dict[int, Grown] = field(repr=False)
    _digests: dict[int, str] = field(default_factory=dict, repr=False)

    @property
    def kinds(self) -> int:
        """Number of different structures."""
        return len(self._examples)

    def candidate(self, grown: Grown) -> Candidate:
        """The candidate with names."""
        return candidate(self.index, tuple(bits(grown.members)), tuple(self.tensors[t] for t in grown.makes))

    def structure(self, kind: int) -> Structure:
        """The structure with number ``kind``."""
        return structure(self.index, self.candidate(self._examples[kind]))

    def digest(self, kind: int) -> str:
        """``Structure.digest`` of the structure with number ``kind``: the key of its cost."""
        if kind not in self._digests:
            example = self._examples[kind]
            inputs, calls, outputs = self._walker.walk(example.members, example.makes)
            texts = self._walker.texts
            self._digests[kind] = digest_of([texts[i] for i in inputs], [(texts[s], wiring) for s, wiring in calls],
                                            outputs)
        return self._digests[kind]


def enumerate_kernels(graph: PrimitiveGraph, limits: Limits) -> Kernels:
    """Every candidate within the limits; single primitives always."""
    return _Enumerator(graph, limits).run()


Wiring = tuple[tuple[bool, int], ...]


class _Walker:
    """``candidates.structure`` in numbers: texts are interned, so that a walk is all it takes to find equal kernels."""

    def __init__(self, index: GraphIndex, number: Mapping[str, int], makes: Sequence[int]) -> None:
        seen: dict[str, int] = {}
        self._stored = {name: seen.setdefault(stored_text(stored_value(t)), len(seen))
                        for name, t in index.tensors.items()}
        self._makes = makes
        self._calls = []
        for p in index.graph.primitives:
            body = dump(p)
            text = call_text(p.op, p.kind, body["arguments"], body["attributes"], p.result,
                             [o["views"] for o in body["inputs"]], stored_value(index.tensors[p.output]))
            self._calls.append((seen.setdefault(text, len(seen)),
                                tuple((number.get(o.tensor, -1), o.tensor) for o in p.inputs)))
        self.texts = list(seen)

    def key(self, members: int, outputs: Sequence[int]) -> tuple[object, ...]:
        """Equal for kernels of equal structure, and only for those."""
        inputs, calls, stored = self.walk(members, outputs)
        return (*inputs, -1, *(x for call, wiring in calls for x in (call, wiring)), stored)

    def walk(self, members: int, outputs: Sequence[int]) -> tuple[list[int], list[tuple[int, Wiring]], tuple[int, ...]]:
        """Texts of the inputs, text and wiring of each step, and the steps stored: a walk back from the outputs."""
        maker = {self._makes[p]: p for p in bits(members)}
        steps: dict[int, int] = {}
        inputs: dict[str, int] = {}
        calls: list[tuple[int, Wiring]] = []
        opened: set[int] = set()
        for output in outputs:
            stack = [output]
            while stack:
                t = stack[-1]
                if t in steps:
                    stack.pop()
                    continue
                call, operands = self._calls[maker[t]]
                if t in opened:
                    stack.pop()
                    calls.append((call, tuple((r in maker, steps[r] if r in maker else inputs[name])
                                              for r, name in operands)))
                    steps[t] = len(steps)
                    continue
                opened.add(t)
                stack.extend(r for r, _ in reversed(operands) if r in maker)
                for r, name in operands:
                    if r not in maker:
                        inputs.setdefault(name, len(inputs))
        return [self._stored[name] for name in inputs], calls, tuple(steps[t] for t in outputs)


class _Enumerator:
    """Primitives and made tensors by number; ``live`` are those that outputs can depend on."""

    def __init__(self, graph: PrimitiveGraph, limits: Limits) -> None:
        self.limits = limits
        self.index = GraphIndex(graph)
        self.primitives = graph.primitives
        self.tensors = tuple(self.index.producers)
        self.number = {name: i for i, name in enumerate(self.tensors)}
        self.makers = [self.index.producers[name] for name in self.tensors]
        count = len(self.primitives)
        self.reads = [sum(1 << self.number[t] for t in self.index.reads(p)) for p in range(count)]
        self.makes = [self.number[p.output] for p in self.primitives]
        self.linear = sum(1 << i for i, p in enumerate(self.primitives) if p.kind == "linear")
        self.opaque = sum(1 << i for i, p in enumerate(self.primitives) if p.kind == "opaque")
        self.rewritten = any(p.rewrite is not None for p in self.primitives)
        self.targets = sum(1 << self.number[t] for t in self.index.targets)
        self.below = self._ancestors()
        self.walker = _Walker(self.index, self.number, self.makes)
        self.found: dict[tuple[int, tuple[int, ...]], Grown] = {}
        self.kinds: dict[tuple[object, ...], int] = {}
        self.examples: dict[int, Grown] = {}
        self.capped = 0

    def run(self) -> Kernels:
        live = self._live()
        for p in bits(live):
            self._grow(p)
        seeds = {g.kind for g in self.found.values() if g.members.bit_count() == 1}
        own = self._needed([p for p in bits(live) if self.primitives[p].rewrite is None])
        fused: list[Grown] = []
        program = None
        if self.limits.whole:
            fused = [self._add(*block) for block in self._fused(own)]
            components = [self._add(*block) for block in self._components(own)]
            program = self._add(*self._span(own, 0, len(own)))
            seeds |= {g.kind for g in (*fused, *components, program)}
            for block in self._blocks(own):
                self._add(*block)
        return Kernels(index=self.index, tensors=self.tensors, grown=tuple(self.found.values()), capped=self.capped,
                       needed=sum(1 << p for p in own), fused=tuple(fused), program=program, seeds=frozenset(seeds),
                       _walker=self.walker, _examples=self.examples)

    def _ancestors(self) -> list[int]:
        """Tensors that each tensor needs, itself included, by the captured program where that makes it."""
        above = [0] * len(self.tensors)
        for p in self.index.order:
            t = self.makes[p]
            own = [m for m in self.makers[t] if self.primitives[m].rewrite is None]
            if own and p != own[0]:
                continue
            for r in bits(self.reads[p]):
                above[t] |= above[r]
            above[t] |= 1 << t
        return above

    def _live(self) -> int:
        """Primitives that an output may depend on, through any producer."""
        live = seen = 0
        waiting = list(bits(self.targets))
        while waiting:
            t = waiting.pop()
            if seen >> t & 1:
                continue
            seen |= 1 << t
            for p in self.makers[t]:
                live |= 1 << p
                waiting.extend(bits(self.reads[p] & ~seen))
        return live

    def _grow(self, root: int) -> None:
        """All kernels whose output ``root`` makes, smallest first."""
        limits = self.limits
        seen = {1 << root}
        level = [1 << root]
        size = 1
        makes = self.makes[root]
        while level:
            following: list[int] = []
            for members in level:
                self._add(members, (makes,))
                if size < limits.largest and not members & self.opaque:
                    following.extend(self._larger(members, seen))
            if len(seen) > limits.per_output:
                self.capped += 1
                room = max(0, limits.per_output - (len(seen) - len(following)))
                for members in following[:room]:
                    self._add(members, (makes,))
                return
            level, size = following, size + 1

    def _larger(self, members: int, seen: set[int]) -> Iterator[int]:
        """Sets with one producer more than ``members`` that are allowed and not in ``seen``."""
        made, reads = self._edge(members)
        open_reads = reads if self.limits.prologues else self._edge(members & ~self.linear)[1] & ~made
        for t in bits(open_reads & ~made):
            for p in self.makers[t]:
                larger = members | 1 << p
                if larger in seen or not self._allowed(larger, made | 1 << t, reads | self.reads[p]):
                    continue
                if self.rewritten and self.reads[p] & made and not self._acyclic(larger):
                    continue
                seen.add(larger)
                yield larger

    def _edge(self, members: int) -> tuple[int, int]:
        made = reads = 0
        for p in bits(members):
            made |= 1 << self.makes[p]
            reads |= self.reads[p]
        return made, reads

    def _allowed(self, members: int, made: int, reads: int) -> bool:
        if members & self.opaque:
            return False
        if members & self.linear and (members & self.linear).bit_count() > self.limits.most_linear:
            return False
        return self.limits.space == "cone" or self._convex(made, reads)

    def _convex(self, made: int, reads: int) -> bool:
        """Whether nothing read from outside depends on something made inside."""
        return not any(self.below[t] & made for t in bits(reads & ~made))

    def _acyclic(self, members: int) -> bool:
        """Whether the members can run one after the other on what lies outside."""
        made = sum(1 << self.makes[p] for p in bits(members))
        left = list(bits(members))
        done = 0
        while left:
            waiting = [p for p in left if self.reads[p] & made & ~done]
            if len(waiting) == len(left):
                return False
            for p in left:
                if p not in waiting:
                    done |= 1 << self.makes[p]
            left = waiting
        return True

    def _add(self, members: int, outputs: tuple[int, ...]) -> Grown:
        """Keep a candidate, once."""
        if (members, outputs) in self.found:
            return self.found[members, outputs]
        made, reads = self._edge(members)
        kind = self.kinds.setdefault(self.walker.key(members, outputs), len(self.kinds))
        grown = Grown(members=members, reads=reads & ~made, makes=outputs, kind=kind)
        self.found[members, outputs] = grown
        self.examples.setdefault(kind, grown)
        return grown

    def _blocks(self, own: Sequence[int]) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Kernels of any size that are worth a look: whole cones, pairs of compute-bound primitives."""
        yield from self._whole_cones(own)
        if self.limits.most_linear:
            yield from self._pairs(own)

    def _needed(self, own: Sequence[int]) -> list[int]:
        """Primitives of the captured program that its outputs need, in its order."""
        needed = self.targets
        kept = []
        for p in reversed(own):
            if needed >> self.makes[p] & 1:
                needed |= self.reads[p]
                kept.append(p)
        return kept[::-1]

    def _own_maker(self, t: int) -> int | None:
        first = self.makers[t][0]
        return first if self.primitives[first].rewrite is None else None

    def _whole_cones(self, own: Sequence[int]) -> Iterator[tuple[int, tuple[int, ...]]]:
        """From each primitive everything back to compute-bound or opaque ones; and with those of its operands."""
        for root in own:
            if (self.linear | self.opaque) >> root & 1:
                continue
            members, waiting = 1 << root, [root]
            while waiting:
                for t in bits(self.reads[waiting.pop()]):
                    p = self._own_maker(t)
                    if p is not None and not (self.linear | self.opaque | members) >> p & 1:
                        members |= 1 << p
                        waiting.append(p)
            if members.bit_count() <= self.limits.largest:
                continue
            if self.limits.space == "cone" or self._convex(*self._edge(members)):
                yield members, (self.makes[root],)

    def _pairs(self, own: Sequence[int]) -> Iterator[tuple[int, tuple[int, ...]]]:
        """A compute-bound primitive, the next one, and all between: attention is such a pair."""
        after: list[int] = [0] * len(self.tensors)  # compute-bound ancestors with none in between
        for p in own:
            t = self.makes[p]
            nearest = 0
            for r in bits(self.reads[p]):
                maker = self._own_maker(r)
                if maker is not None:
                    nearest |= 1 << r if self.linear >> maker & 1 else after[r]
            if not self.linear >> p & 1:
                after[t] = nearest
                continue
            for source in bits(nearest):
                members = self._between(source, p, own)
                if members & self.opaque or not self._allowed_pair(members):
                    continue
                yield members, (t,)

    def _between(self, source: int, sink: int, own: Sequence[int]) -> int:
        """``source``'s maker, ``sink``, and every primitive on a path between."""
        members = 1 << sink
        wanted = self.below[self.makes[sink]]
        for p in own:
            t = self.makes[p]
            if wanted >> t & 1 and self.below[t] >> source & 1:
                members |= 1 << p
        return members

    def _fused(self, own: Sequence[int]) -> Iterator[tuple[int, tuple[int, ...]]]:
        """What pairwise greedy fusion makes of the captured program (see ``fusion``)."""
        nodes = [FusionNode(reads=self.reads[p], makes=1 << self.makes[p], opaque=bool(self.opaque >> p & 1),
                            linear=bool(self.linear >> p & 1)) for p in own]
        sizes = [self.index.tensors[name].nbytes for name in self.tensors]
        for group in greedy_groups(nodes, sizes, most_linear=self.limits.most_linear):
            members = sum(1 << own[i] for i in group)
            yield members, self._stored_by(members, own)

    def _stored_by(self, members: int, own: Sequence[int]) -> tuple[int, ...]:
        """What ``members`` make and the outputs or other primitives of the captured program need."""
        needed = self.targets
        for p in own:
            if not members >> p & 1:
                needed |= self.reads[p]
        return tuple(self.makes[p] for p in bits(members) if needed >> self.makes[p] & 1)

    def _allowed_pair(self, members: int) -> bool:
        return (members & self.linear).bit_count() <= 2 and members.bit_count() <= 2 * self.limits.largest

    def _components(self, own: Sequence[int]) -> Iterator[tuple[int, tuple[int, ...]]]:
        """The captured program cut wherever a single tensor crosses."""
        last_use: dict[int, int] = {}
        for place, p in enumerate(own):
            last_use.update(dict.fromkeys(bits(self.reads[p]), place))
        last_use.update(dict.fromkeys(bits(self.targets), len(own)))
        crossing: set[int] = set()
        begin = 0
        for place, p in enumerate(own):
            crossing.add(self.makes[p])
            crossing = {t for t in crossing if last_use[t] > place}
            if len(crossing) == 1 or place + 1 == len(own):
                members, outputs = self._span(own, begin, place + 1)
                if members.bit_count() > 1 and not members & self.opaque:
                    yield members, outputs
                begin = place + 1

    def _span(self, own: Sequence[int], begin: int, end: int) -> tuple[int, tuple[int, ...]]:
        """Primitives ``begin`` to ``end`` of the captured program, with what the rest of it needs of them."""
        members = sum(1 << p for p in own[begin:end])
        return members, self._stored_by(members, own)
