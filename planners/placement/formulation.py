"""The optimisation model, exactly linear: theta = 1/T turns the paper's bilinear rows into linear ones.

With rate R = theta * sum f (requests/s), mix phi = f / sum f, and u_{c,w} the replicas of c that work on w:

    sum_c h_{c,w} u_{c,w} = phi_w R,    sum_w u_{c,w} <= y_c,    sum_c d_n(c) y_c = g_n <= a_n,    sum_n p_n g_n <= B

T = sum f / R, x_{c,w} = h u / (phi_w R). For fixed y this is a linear program, whose dual gives for every lambda >= 0
with phi . lambda = 1 the valid inequality R <= sum_c y_c max_w lambda_w h_{c,w} (``values``): the model without u.
The GPU counts g are integer columns of their own: branching on what to rent closes the gap much sooner.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import floor, isinf, lcm

import numpy as np

from planners.placement.instance import Floats, Instance, Integers
from workbench.milp import Model, relax, solve

__all__ = ["Assignment", "Relaxation", "assign", "fleet_model", "price_scale", "relaxation", "typical_rate", "values",
           "whole_prices", "with_cuts", "with_work"]

_LARGEST_DENOMINATOR = 10_000


def fleet_model(instance: Instance) -> Model:
    """What can be rented: ``replicas`` [C] and ``gpus`` [N], integer, within availability and budget."""
    model = Model("placement")
    replicas = model.variables("replicas", len(instance.candidates), integer=True,
                               upper=instance.most_replicas().astype(float))
    gpus = model.variables("gpus", instance.device_names, integer=True, upper=instance.available.astype(float))
    model.add("rented", instance.devices.T @ replicas - gpus, "==", 0.0)
    if not isinf(instance.budget):
        scale = price_scale(instance.price)
        budget = instance.budget if scale is None else floor(instance.budget * scale + 1e-6)
        model.add("budget", whole_prices(instance) @ gpus, "<=", budget)
    return model


def price_scale(price: Floats) -> int | None:
    """Smallest factor that makes all prices [N] whole, so that a solver can round its bounds; ``None``: too large."""
    simple = [Fraction(float(p)).limit_denominator(_LARGEST_DENOMINATOR) for p in price]
    if any(abs(float(s) - p) > 1e-12 * max(1.0, p) for s, p in zip(simple, price, strict=True)):
        return None
    scale = lcm(*(s.denominator for s in simple))
    return scale if scale <= _LARGEST_DENOMINATOR else None


def whole_prices(instance: Instance) -> Floats:
    """Prices [N] in units of 1 / ``price_scale``."""
    scale = price_scale(instance.price)
    return instance.price if scale is None else np.rint(instance.price * scale)


def with_work(model: Model, instance: Instance, unit: float) -> Model:
    """Add the assignment: ``work`` [pairs with h > 0], and ``rate`` in multiples of ``unit`` requests/s."""
    c, w = np.nonzero(instance.rate)
    work = model.variables("work", len(c))
    rate = model.variables("rate")
    best = instance.rate.max(axis=0)
    from scipy.sparse import csr_array

    served = csr_array((instance.rate[c, w] / best[w], (w, np.arange(len(c)))), shape=(len(best), len(c)))
    busy = csr_array((np.ones(len(c)), (c, np.arange(len(c)))), shape=(len(instance.candidates), len(c)))
    model.add("served", served @ work - (instance.mix * unit / best) * rate, "==", 0.0)
    model.add("busy", busy @ work - model["replicas"], "<=", 0.0)
    return model


def with_cuts(model: Model, cuts: Floats, unit: float) -> Model:
    """Add ``rate`` (multiples of ``unit``) bounded by the inequalities ``cuts`` [K, C], in place of the assignment."""
    rate = model.variables("rate")
    model.add("cuts", (-cuts / unit) @ model["replicas"] + rate, "<=", 0.0)
    return model


def values(instance: Instance, prices: Floats) -> Floats:
    """Worth of one replica of each candidate, [C], at ``prices`` [W] of the workload types: max_w lambda_w h."""
    return (instance.rate * prices).max(axis=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Assignment:
    """Best assignment for one fleet: ``rate`` requests/s, ``work`` [C, W] replicas of c on w, dual ``prices`` [W]."""

    rate: float
    work: Floats
    prices: Floats


def assign(instance: Instance, replicas: Integers | Floats) -> Assignment:
    """The linear program in u for a fixed fleet ``replicas`` [C]; its ``prices`` give the tightest inequality there."""
    on = np.flatnonzero(replicas > 0)
    able = (instance.rate[on] > 0).any(axis=0)
    work = np.zeros(instance.rate.shape)
    if not able.all():
        prices = np.where(able, 0.0, 1.0)
        return Assignment(rate=0.0, work=work, prices=prices / (prices @ instance.mix))
    part = instance.take(on)
    unit = typical_rate(instance)
    model = Model("assignment")
    model.variables("replicas", len(on), lower=replicas[on], upper=replicas[on])
    with_work(model, part, unit)
    model.maximise(model["rate"])
    solution = solve(model)
    c, w = np.nonzero(part.rate)
    work[on[c], w] = np.maximum(solution["work"], 0.0)
    assert solution.duals is not None, "a linear program has duals"
    prices = np.maximum(-solution.duals["served"], 0.0) / part.rate.max(axis=0)
    return Assignment(rate=float(solution["rate"]) * unit, work=work, prices=prices / (prices @ instance.mix))


def typical_rate(instance: Instance) -> float:
    """Rate of one replica that were the best of all candidates on every type; a unit for rates."""
    return float(1.0 / (instance.mix / instance.rate.max(axis=0)).sum())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Relaxation:
    """The linear relaxation: its ``rate`` (or ``cost``), fleet, prices of workload types, and shadow prices.

    ``budget_price`` is requests/s per $/h; ``device_price`` [N] is requests/s per GPU.
    """

    rate: float
    replicas: Floats
    prices: Floats
    budget_price: float
    device_price: Floats


def relaxation(instance: Instance) -> Relaxation:
    """Largest rate if replicas could be fractional."""
    unit = typical_rate(instance)
    model = relax(with_work(fleet_model(instance), instance, unit))
    model.maximise(model["rate"])
    solution = solve(model)
    assert solution.duals is not None, "a linear program has duals"
    assert solution.reduced_costs is not None, "a linear program has reduced costs"
    prices = np.maximum(-solution.duals["served"], 0.0) / instance.rate.max(axis=0)
    total = prices @ instance.mix
    budget_price = 0.0
    if "budget" in solution.duals:
        budget_price = float(solution.duals["budget"]) * unit * (price_scale(instance.price) or 1)
    return Relaxation(rate=float(solution["rate"]) * unit, replicas=solution["replicas"],
                      prices=prices / total if total > 0 else np.ones(len(prices)),
                      budget_price=budget_price,
                      device_price=np.maximum(solution.reduced_costs["gpus"], 0.0) * unit)
