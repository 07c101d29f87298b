"""Reference answers for placement, written for clarity and sharing nothing with the planners.

``optimal_rate`` enumerates every fleet and solves the assignment of each by its own linear program;
``parametric_rate`` solves the assignment for two workload types in closed form.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.optimize import linprog


def fleets(devices: np.ndarray, price: np.ndarray, available: np.ndarray, budget: float) -> Iterator[tuple[int, ...]]:
    """Every vector of replica counts y with d y <= a and o y <= B (devices [C, N])."""
    cost = devices @ price
    ranges = []
    for d, o in zip(devices, cost, strict=True):
        most = min(a // k for a, k in zip(available, d, strict=True) if k)
        ranges.append(range(int(min(most, budget / o + 1e-9 if o else most)) + 1))
    for y in itertools.product(*ranges):
        rented = np.array(y) @ devices
        if (rented <= available).all() and rented @ price <= budget * (1 + 1e-12):
            yield y


def assignment_makespan(y: Sequence[int], rate: np.ndarray, requests: np.ndarray) -> float:
    """Least T with every request served by the fleet y (rate [C, W]): min T s.t. sum_c x = 1, sum_w x f/(y h) <= T."""
    replicas, types = rate.shape
    pairs = [(c, w) for c in range(replicas) for w in range(types) if y[c] > 0 and rate[c, w] > 0]
    if any(not any(p[1] == w for p in pairs) for w in range(types)):
        return float("inf")
    objective = np.zeros(len(pairs) + 1)
    objective[-1] = 1.0
    cover = np.zeros((types, len(pairs) + 1))
    busy = np.zeros((replicas, len(pairs) + 1))
    busy[:, -1] = -1.0
    for k, (c, w) in enumerate(pairs):
        cover[w, k] = 1.0
        busy[c, k] = requests[w] / (y[c] * rate[c, w])
    solved = linprog(objective, A_ub=busy, b_ub=np.zeros(replicas), A_eq=cover, b_eq=np.ones(types),
                     bounds=(0, None), method="highs")
    assert solved.status == 0
    return float(solved.x[-1])


def least_makespan(devices: np.ndarray, price: np.ndarray, available: np.ndarray, budget: float, rate: np.ndarray,
                   requests: np.ndarray) -> tuple[float, float]:
    """(least T, least cost among the fleets that reach it within 1e-9), by enumeration of every fleet."""
    cost = devices @ price
    solved = [(assignment_makespan(y, rate, requests), float(np.dot(y, cost)))
              for y in fleets(devices, price, available, budget)]
    best = min(t for t, _ in solved)
    if not np.isfinite(best):
        return best, float("inf")
    return best, min(o for t, o in solved if t <= best * (1 + 1e-9))


def least_cost(devices: np.ndarray, price: np.ndarray, available: np.ndarray, budget: float, rate: np.ndarray,
               requests: np.ndarray, required_per_s: float) -> float:
    """Least cost of a fleet that sustains ``required_per_s`` requests/s of the mix; inf when none does."""
    cost = devices @ price
    longest = requests.sum() / required_per_s
    return min((float(np.dot(y, cost)) for y in fleets(devices, price, available, budget)
                if assignment_makespan(y, rate, requests) <= longest * (1 + 1e-9)), default=float("inf"))


def two_type_makespan(y: Sequence[int], rate: np.ndarray, requests: np.ndarray) -> float:
    """Least T for two workload types and positive rates, in closed form.

    Give type 1 to the configurations in falling order of h1/h2; at the optimum at most one configuration serves both.
    """
    on = [c for c in range(len(y)) if y[c] > 0]
    on.sort(key=lambda c: rate[c, 1] / rate[c, 0])
    f1, f2 = requests
    for k, c in enumerate(on):
        first = sum(y[j] * rate[j, 0] for j in on[:k])
        second = sum(y[j] * rate[j, 1] for j in on[k + 1:])
        # c works a share s of its time on type 1: T = f1 / (first + s a) = f2 / (second + (1 - s) b)
        a, b = y[c] * rate[c, 0], y[c] * rate[c, 1]
        s = (f1 * (second + b) - f2 * first) / (f2 * a + f1 * b)
        if 0 <= s <= 1:
            return (f1 + f2 * a / b) / (first + second * a / b + a)
    raise AssertionError("the last configuration always closes")


def pure_makespan(requests: float, rate_per_s: float, price: float, per_replica: int, available: int,
                  budget: float) -> float:
    """One workload type, one configuration: T = f / (min(floor(B / o), floor(a / d)) h)."""
    return requests / (min(int(budget / (price * per_replica) + 1e-9), available // per_replica) * rate_per_s)


def proportional_makespan(y: Sequence[int], rate: np.ndarray, requests: np.ndarray) -> float:
    """Every type spread over all replicas in proportion to their rates: T = sum_w f_w / sum_c y_c h_cw."""
    return float(sum(f / np.dot(y, rate[:, w]) for w, f in enumerate(requests)))
