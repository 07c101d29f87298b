"""The dynamic program over series-parallel sub-graphs (algorithms 1 and 2 of the paper, stated for fewest devices).

For a bottleneck T the value of (sub-graph, what follows it) is the Pareto front of (in-flight interface of its first
stages, devices used); a sub-graph's stages fit the cluster iff the root has an entry with at most |V_D| devices.
Fewest devices instead of a device count in the state is exact because devices may stay idle, and it is what makes the
search fast. An interface (i, b) is what the stages before it see of the stages after them (``inflight.need``).
Stages explored: a run of items of a series; groups of whole branches; such a run together with the tail of a branch or
with whole branches that it joins, and with the head of a branch that it forks. k is 1: a larger k only raises i.
Branches of different b at one fork are merged into the smallest single interface that asks no less of any predecessor.
Sub-graphs whose operators cannot fit the devices the rest leaves them (work / T) are cut off.
"""

from __future__ import annotations

import math
from operator import le
from typing import Any, Literal, TypeGuard

from planners.pipeline.decomposition import Node
from planners.pipeline.inflight import need, rounded
from planners.pipeline.pricing import Prices
from planners.pipeline.reading import Chosen, Reading
from planners.pipeline.shape import Counts, Shape
from planners.pipeline.work import Work

__all__ = ["Probe"]

# (in-flight samples, micro-batch) of the first stages; None: nothing follows.
Interface = tuple[int, int] | None
# Fewest devices and how they are used, by interface.
Front = dict[Interface, tuple[int, Any]]


class Probe:
    """One bottleneck T: does a stage graph exist whose every stage takes at most T a sample?

    ``memory`` says what must fit beside the weights: "in-flight", all that a stage holds; "one", a micro-batch, and
    nobody asks how deep a pipeline becomes; "depth" (one micro-batch size only), a micro-batch too, but the front tells
    depths apart. The latter two have far fewer states (with "depth" what follows only shifts a front) and never fewer
    answers. Operators that ``limit`` is too small for may take up to ``alone`` seconds a sample as stages of their own.
    """

    def __init__(self, prices: Prices, shape: Shape, work: Work, menu: tuple[int, ...], limit: float, *,
                 alone: float = 0.0, memory: Literal["in-flight", "one", "depth"] = "in-flight") -> None:
        assert memory != "depth" or len(menu) == 1
        self.prices, self.shape, self.work, self.menu, self.limit = prices, shape, work, menu, limit
        self.root = shape.root
        self.memory = memory
        self.alone, self.single = alone, 0
        if alone > limit:
            self.single = sum(1 << v for v, least in enumerate(work.alone) if least > limit)
            self.work = work.relieved(limit)
        self.batch = prices.problem.batch_samples
        self.devices = prices.cluster.devices
        # At most one replica a sample of a micro-batch; stages of more compute than that many hold within T are none.
        self.most_work = min(self.devices, max(menu)) * limit * (1 + 1e-9)
        self.any_fits = self.work.of(self.root.mask) <= self.most_work
        self.total = self.work.of(self.root.mask)
        self.memo: dict[Any, Front] = {}
        self.places: dict[tuple[int, Interface], list[tuple[int, int, int]]] = {}
        self.replicas: dict[int, int] = {}
        self.groups: dict[Any, list[tuple[Counts, int, int, int]]] = {}
        self.wholes: dict[Any, dict[Counts, list[tuple[int, int, int]]]] = {}
        self.per_stage = max(menu) * (1 if len(menu) == 1 else 3)
        # asks[b][c]: how much more an interface of micro-batch b can ask of a predecessor than one of c.
        self.asks = {b: {c: max(need(x, 1, 0, b) - need(x, 1, 0, c) for x in menu) for c in menu} for b in menu}

    def front(self) -> Front:
        """Fewest devices by interface of the model's first stages."""
        after = (0, self.menu[0]) if self.memory == "depth" else None
        return self._chain(self.root, 0, len(self.root.parts), after)

    def stages(self, choice: Any) -> list[Chosen]:
        """The stages of an entry of ``front``."""
        out: list[Chosen] = []
        Reading(self.prices, out).chain(choice, self.root, len(self.root.parts))
        return out

    def _fits(self, mask: int, micro: int, held: int) -> int | None:
        """Fewest replicas of a stage within T and memory."""
        limit = self.alone if mask & self.single == mask and mask & (mask - 1) == 0 else self.limit
        for replicas, seconds, most in self.prices.options(mask, micro):
            if seconds <= limit and most >= held:
                return replicas
        return None

    def _placed(self, mask: int, following: Interface) -> list[tuple[int, int, int]]:
        """(in-flight, micro-batch, replicas) of a stage before ``following``."""
        if self.memory != "in-flight":
            b, = self.menu
            replicas = self.replicas.get(mask)
            if replicas is None:
                replicas = self.replicas[mask] = self._fits(mask, b, b) or 0
            held = b if self.memory == "one" or following is None else b + following[0]
            return [(held, b, replicas)] if replicas else []
        key = (mask, following)
        found = self.places.get(key)
        if found is None:
            found = self.places[key] = []
            for b in self.menu:
                held = b if following is None else rounded(need(b, 1, *following), b, self.batch)
                replicas = self._fits(mask, b, held)
                if replicas is not None:
                    found.append((held, b, replicas))
        return found

    def _allowed(self, mask: int, following: Interface) -> float:
        """Devices a sub-graph may take, given the least that everything else needs: its work, and a device for each
        stage on the path that ``following`` begins (one stage raises i by at most ``per_stage`` samples)."""
        outside = math.ceil((self.total - self.work.of(mask)) / self.limit - 1e-9)
        return self.devices - max(outside, 0 if following is None else -(-following[0] // self.per_stage))

    def _shifts(self, following: Interface) -> TypeGuard[tuple[int, int]]:
        """Whether a front is that of stages nothing follows, each ``following`` deeper."""
        return self.memory == "depth" and following is not None and following[0] > 0

    def _merge(self, a: Interface, b: Interface) -> Interface:
        if a is None or a == b:
            return b
        if b is None:
            return a
        one = (max(a[0], b[0] + self.asks[b[1]][a[1]]), a[1])
        two = (max(b[0], a[0] + self.asks[a[1]][b[1]]), b[1])
        return min(one, two)

    def _enter(self, front: Front, key: Interface, devices: int, choice: Any) -> None:
        if key not in front or devices < front[key][0]:
            front[key] = devices, choice

    def _pruned(self, front: Front, most: float) -> Front:
        """Without entries that another one beats in devices and in what it asks of every predecessor."""
        if len(front) < 2:
            return {k: e for k, e in front.items() if e[0] <= most}
        kept: Front = {}
        for key, entry in sorted(front.items(), key=lambda e: (e[1][0], e[0] or (0, 0))):
            if entry[0] > most:
                break
            if key is None or not any(k is None or k[0] + self.asks[k[1]][key[1]] <= key[0] for k in kept):
                kept[key] = entry
        return kept

    def _both(self, first: Front, second: Front, most: float) -> Front:
        """Fronts of two sets of branches side by side."""
        if len(second) == 1 and None in second:
            e, other = second[None]
            return {a: (d + e, (choice, other)) for a, (d, choice) in first.items() if d + e <= most}
        out: Front = {}
        for a, (d, choice) in first.items():
            for b, (e, other) in second.items():
                if d + e <= most:
                    self._enter(out, self._merge(a, b), d + e, (choice, other))
        return self._pruned(out, most)

    def _chain(self, node: Node, lo: int, hi: int, following: Interface) -> Front:
        """Items lo … hi - 1 of a series, closed at both ends."""
        if lo == hi:
            return {following: (0, None)}
        node = self.shape.of_kind[node.kind]
        key = (node.kind, lo, hi, following)
        if key in self.memo:
            return self.memo[key]
        if self._shifts(following):
            self.memo[key] = moved = _moved(self._chain(node, lo, hi, (0, following[1])), following[0])
            return moved
        span = self.shape.span(node, lo, hi)
        most = self._allowed(span, following)
        out: Front = {}
        if most >= 1:
            self._extend(out, node, lo, hi, 0, following, following, None, most)
            if node.parts[hi - 1].shape == "parallel":
                counts = tuple(map(len, node.parts[hi - 1].groups))
                for k, (devices, choice) in self._before(node, lo, hi - 1, counts, None, following, False).items():
                    self._enter(out, k, devices, ("open", choice))
        self.memo[key] = out = self._pruned(out, most)
        return out

    def _extend(self, out: Front, node: Node, lo: int, hi: int, head: int, following: Interface, _after: Interface,
                right: Any, most: float) -> None:
        """All stages that end with items … hi - 1 and the branch head ``head``; then what stands before them."""
        base = 0 if right is None else right[-1]
        mask = head
        for j in range(hi - 1, lo - 1, -1):
            mask |= node.parts[j].mask
            if self._hopeless(mask):
                return
            least = base + math.ceil(self.work.of(self.shape.span(node, lo, j)) / self.limit - 1e-9)
            fits = self.work.of(mask) / self.limit - 1e-9 <= most - least
            for held, b, d in self._placed(mask, following) if fits else ():
                if d + least > most:
                    continue
                for k, (devices, choice) in self._chain(node, lo, j, (held, b)).items():
                    if devices + d + base <= most:
                        self._enter(out, k, devices + d + base, ("run", j, b, d, right, mask, choice))
            if j > lo and node.parts[j - 1].shape == "parallel":
                self._join(out, node, lo, j, mask, following, right, most)

    def _hopeless(self, mask: int) -> bool:
        """Whether no number of replicas brings a set's compute under T."""
        return not self.any_fits and self.work.of(mask) > self.most_work

    def _join(self, out: Front, node: Node, lo: int, j: int, mask: int, following: Interface, right: Any,
              most: float) -> None:
        """Stages that take, besides ``mask``, whole branches or the tail of one branch of the fork before item j."""
        fork = node.parts[j - 1]
        counts = tuple(map(len, fork.groups))
        base = 0 if right is None else right[-1]
        # Everything from item lo on that this stage or the ones before it still have to take.
        whole_work = self.work.of(self.shape.span(node, lo, j) | mask)
        none = (0,) * len(counts)
        for whole, held, b, d in self._largest(fork, counts, 0, mask, following):
            left = tuple(c - n for c, n in zip(counts, whole, strict=True))
            if any(left):
                self._joined_stage(out, node, lo, j, (held, b), d, base, left, whole, None,
                                   mask | self.shape.whole(fork, whole), right, most)
        for g in range(len(counts)):
            child = self._branch(fork, g)
            for q in range(1, len(child.parts)):
                full = mask | self.shape.span(child, q, len(child.parts))
                if not counts[g] or self._hopeless(full):
                    continue
                least = base + math.ceil((whole_work - self.work.of(full)) / self.limit - 1e-9)
                for held, b, d in self._placed(full, following):
                    if d + least <= most:
                        self._joined_stage(out, node, lo, j, (held, b), d, base, _less(counts, g), none, (g, q), full,
                                           right, most)

    def _joined_stage(self, out: Front, node: Node, lo: int, j: int, stage: tuple[int, int], d: int, base: int,
                      left: Counts, whole: Counts, tail: tuple[int, int] | None, taken: int, right: Any,
                      most: float) -> None:
        """Enter a joining stage (the operators ``taken``) with what stands before it."""
        before = self._before(node, lo, j - 1, left, tail, stage, any(whole))
        for k, (devices, choice) in before.items():
            if devices + d + base <= most:
                self._enter(out, k, devices + d + base, ("join", j, stage[1], d, right, taken, whole, tail, choice))

    def _before(self, node: Node, lo: int, p: int, counts: Counts, tail: tuple[int, int] | None,
                following: Interface, seen: bool) -> Front:
        """Items lo … p, of the fork p only branches ``counts`` and the part before ``tail``; all are followed by
        ``following``, which with ``seen`` itself holds a whole branch and so is a successor of what stands before."""
        key = (node.kind, lo, p, counts, tail, following, seen)
        if key in self.memo:
            return self.memo[key]
        if self._shifts(following):
            still = self._before(node, lo, p, counts, tail, (0, following[1]), seen)
            self.memo[key] = moved = _moved(still, following[0])
            return moved
        fork = node.parts[p]
        most = self.devices
        start: Front = {following if seen else None: (0, None)}
        stub: Front = {None: (0, None)}
        if tail is not None:
            child = self._branch(fork, tail[0])
            stub = self._chain(child, 0, tail[1], following)
        closed = self._both(self._both(self._fork(fork, counts, following), stub, most), start, most)
        out: Front = {}
        for interface, (devices, choice) in closed.items():
            for k, (more, rest) in self._chain(node, lo, p, interface).items():
                if devices + more <= most:
                    self._enter(out, k, devices + more, ("closed", choice[0], rest))
        if p > lo:
            self._fork_heads(out, node, lo, p, counts, tail, following, start, stub)
        self.memo[key] = out = self._pruned(out, most)
        return out

    def _fork_heads(self, out: Front, node: Node, lo: int, p: int, counts: Counts, tail: tuple[int, int] | None,
                    following: Interface, start: Front, stub: Front) -> None:
        """The stage before fork p also takes the head of one of its branches."""
        fork, most = node.parts[p], self.devices
        cases: list[tuple[int, int, bool]] = [(g, len(self._branch(fork, g).parts), False)
                                              for g, c in enumerate(counts) if c]
        if tail is not None:
            cases.append((tail[0], tail[1], True))
        for g, length, is_tail in cases:
            child = self._branch(fork, g)
            others = self._fork(fork, counts if is_tail else _less(counts, g), following)
            aside = self._both(others, {None: (0, None)} if is_tail else stub, most)
            aside = self._both(aside, start, most)
            for q in range(1, length + 1):
                head = self.shape.span(child, 0, q)
                if self._hopeless(head):
                    break
                remainder = self._chain(child, q, length, following)
                for interface, (devices, choice) in self._both(remainder, aside, most).items():
                    right = (g, q, is_tail, choice, devices)
                    self._extend(out, node, lo, p, head, interface, following, right, most)

    def _fork(self, fork: Node, counts: Counts, following: Interface) -> Front:
        """Branches ``counts`` of a fork: each closed by itself, or whole branches grouped in one stage."""
        if not any(counts):
            return {None: (0, None)}
        key = ("fork", fork.kind, counts, following)
        if key in self.memo:
            return self.memo[key]
        if self._shifts(following):
            self.memo[key] = moved = _moved(self._fork(fork, counts, (0, following[1])), following[0])
            return moved
        g = next(i for i, c in enumerate(counts) if c)
        child = self._branch(fork, g)
        most = self.devices
        out: Front = {}
        alone = self._chain(child, 0, len(child.parts), following)
        if alone:
            for k, (devices, (first, rest)) in self._both(
                    alone, self._fork(fork, _less(counts, g), following), most).items():
                self._enter(out, k, devices, ("alone", g, first, rest))
        for vector, held, b, d in self._largest(fork, counts, g, 0, following):
            left = tuple(c - n for c, n in zip(counts, vector, strict=True))
            for k, (devices, rest) in self._fork(fork, left, following).items():
                if devices + d <= most:
                    self._enter(out, self._merge(k, (held, b)), devices + d, ("group", vector, b, d,
                                                                          self.shape.whole(fork, vector), rest))
        self.memo[key] = out = self._pruned(out, most)
        return out

    def _largest(self, fork: Node, counts: Counts, first: int, mask: int,
                 following: Interface) -> list[tuple[Counts, int, int, int]]:
        """Stages of ``mask`` and whole branches (number by kind, in-flight, b, replicas); of those alike but for their
        branches only the largest, since what a stage takes at no cost the others need not hold."""
        key = ("largest", fork.kind, counts, first, mask, following)
        if key in self.groups:
            return self.groups[key]
        kept: dict[tuple[int, int, int], list[Counts]] = {}
        places = self.wholes.setdefault((fork.kind, mask, following), {})
        for vector in self.shape.vectors(counts, first, bool(mask)):
            here = places.get(vector)
            if here is None:
                taken = mask | self.shape.whole(fork, vector)
                here = places[vector] = [] if self._hopeless(taken) else self._placed(taken, following)
            for place in here:
                known = kept.setdefault(place, [])
                if not any(_covers(other, vector) for other in known):
                    known.append(vector)
        self.groups[key] = found = [(v, *place) for place, vectors in kept.items() for v in vectors]
        return found

    def _branch(self, fork: Node, group: int) -> Node:
        return fork.items[fork.groups[group][0]]


def _moved(front: Front, samples: int) -> Front:
    """A front whose stages are followed by ones that hold ``samples``."""
    return {None if k is None else (k[0] + samples, k[1]): entry for k, entry in front.items()}


def _less(counts: Counts, group: int) -> Counts:
    return tuple(c - (i == group) for i, c in enumerate(counts))


def _covers(large: Counts, small: Counts) -> bool:
    """Whether ``small`` is nowhere larger than ``large``."""
    return all(map(le, small, large))
