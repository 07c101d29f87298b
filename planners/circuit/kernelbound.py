"""A proven lower bound on the kernels of a stage.

F_m fusion kernels of m wires hold at most M_m seconds of tile work each (M_m: the heaviest m wires, order ignored),
the rest of the work W runs in tiles, and there are at least k kernels, by the energy argument of ``windows``. So every
solution costs at least the linear program
  min sum c_m F_m + b T + R   s.t.  sum M_m F_m + R >= W,   sum F_m + T >= k,   all >= 0,
whose dual is one concave function of one price u: ``W u + k min(b, min_m (c_m - M_m u))`` over 0 <= u <= 1.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from planners.circuit.dag import StageDag, bits
from planners.circuit.kernels import StageGates
from planners.circuit.windows import fewest_stages

__all__ = ["kernel_bound"]

_ENUMERATED = 5
_MOST_SUBSETS = 500_000
_FEW_GATES = 700


def kernel_bound(stage: StageGates) -> float:
    """Seconds no partition of the stage's gates into kernels can go below."""
    work = stage.weights.of(stage.everything)
    kernels = _fewest_kernels(stage)
    lines = [(stage.table.fusion_s[m], heaviest) for m, heaviest in _heaviest(stage).items()]
    base = min(stage.table.tile_s)

    def dual(u: float) -> float:
        v = min([base, *(cost - heaviest * u for cost, heaviest in lines)])
        return work * u + kernels * v if v >= 0 else -math.inf

    prices = {0.0, 1.0}
    for cost, heaviest in lines:
        if heaviest > 0:
            prices |= {cost / heaviest, (cost - base) / heaviest}
        prices |= {(cost - c) / (heaviest - h) for c, h in lines if h != heaviest}
    # a touch below each breakpoint, so that rounding cannot push the other price under zero
    return max(0.0, *(dual(u * (1 - 1e-12)) for u in prices if 0.0 <= u <= 1.0))


def _fewest_kernels(stage: StageGates) -> int:
    """Kernels needed because each changes few wires: the staging bound with kernels for stages."""
    most = max(stage.free_limit, stage.fusion_limit)
    before = [tuple(bits(mask)) for mask in stage.before]
    if stage.count > _FEW_GATES:
        union = 0
        for mask in stage.free_active:
            union |= mask
        return max(1, -(-union.bit_count() // most))
    after: list[list[int]] = [[] for _ in before]
    for v, direct in enumerate(before):
        for u in direct:
            after[u].append(v)
    dag = StageDag(tuple(stage.free_active), tuple(before), tuple(map(tuple, after)))
    return fewest_stages(dag, most)[0]


def _heaviest(stage: StageGates) -> dict[int, float]:
    """For each fusion size, at most how much tile work fits on that many wires."""
    place = {q: p for p, q in enumerate(stage.local)}
    single = np.zeros(len(place))
    pair = np.zeros((len(place), len(place)))
    loose = 0.0
    for i, mask in enumerate(stage.wires):
        weight = stage.weights.of(1 << i)
        spots = [place[q] for q in bits(mask)]
        if not spots:
            loose += weight
        elif len(spots) == 1:
            single[spots[0]] += weight
        else:
            # a gate on more wires is inside only if these two are: counting it here counts enough
            pair[spots[0], spots[1]] += weight
            pair[spots[1], spots[0]] += weight
    found: dict[int, float] = {}
    for size in range(1, stage.fusion_limit + 1):
        if size <= _ENUMERATED and math.comb(len(place), size) <= _MOST_SUBSETS:
            found[size] = loose + _heaviest_subset(single, pair, size)
        elif size > 2 and size - 1 in found:
            # every pair of wires lies in the same share of the smaller subsets
            found[size] = loose + (found[size - 1] - loose) * size / (size - 2)
        else:
            found[size] = loose + float(single.sum() + pair.sum() / 2)
    return found


def _heaviest_subset(single: np.ndarray, pair: np.ndarray, size: int) -> float:
    if size > len(single):
        return float(single.sum() + pair.sum() / 2)
    flat = np.fromiter(itertools.chain.from_iterable(itertools.combinations(range(len(single)), size)), dtype=np.intp)
    subsets = flat.reshape(-1, size)
    total = single[subsets].sum(axis=1)
    for a, b in itertools.combinations(range(size), 2):
        total += pair[subsets[:, a], subsets[:, b]]
    return float(total.max())
