"""What a kernel family declares, and how families are found.

A family is a module of this package with a tuple ``OPS``, or a study's module ``executors/<study>/profiled.py`` with
one, for kernels that only its executor has (a study that measures no grids has a ``Campaign`` there instead, see
``workbench.study.own_campaign``); modules are found by name, there is no registry. Each ``Op`` says over which axes its
time varies, under which exact keys it is tabulated, how a call is prepared on a device, and how many operations and
bytes a call needs at least (for rooflines).
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import math
import pkgutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from profilers.harness import GRAPH_CALLS, Timer, last_cache_bytes
from workbench.costtables import Axis, Scale, Term
from workbench.errors import SpecError, nearest
from workbench.study import profiled

__all__ = ["GridAxis", "Op", "Point", "Prepared", "Work", "drawn", "families", "in_turn", "ops_of"]

_COLD_BYTES = 256 << 20
_DRAWN = 1 << 20
# The last cache is shared with others, and is not left behind all at once.
_OWN_SHARE = 0.5

Point = Mapping[str, Any]


class Work(NamedTuple):
    """Floating-point operations, and bytes that must move at least once."""

    flops: float
    bytes: float


class GridAxis(NamedTuple):
    """One numeric axis: where measuring starts; refinement adds multiples of ``step`` between these values.

    With a ``base`` it adds powers of it instead (sizes of states, heads of attention).
    """

    name: str
    start: tuple[int, ...]
    scale: Scale = "log"
    step: int = 1
    base: int | None = None

    def nearest(self, value: float) -> int:
        """The value nearest to ``value`` that may be measured."""
        if self.base is not None:
            return int(self.base ** round(math.log(value, self.base)))
        return round(value / self.step) * self.step


class Prepared(NamedTuple):
    """A call ready to be timed; ``timer`` replaces the device's own, ``close`` frees what the call held."""

    run: Callable[[], Any]
    timer: Timer | None = None
    close: Callable[[], None] | None = None


class Prepare(Protocol):
    """Makes the arguments of one call."""

    def __call__(self, point: Point, device: str, rng: np.random.Generator) -> Prepared:
        """A call of the op at ``point`` (keys and axes by name) on torch's ``device``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Op:
    """One measured operation.

    ``finish`` frees what its calls share once a campaign is over; ``lacking`` says why a device cannot run it here;
    ``on_cuda`` replaces axes and variants on GPUs, whose kernels are worth measuring at larger sizes; ``threads`` is
    how many CPUs it may use, 0 for all.

    ``terms`` are what its time is a sum of, beside a launch: products of axes, such as ``"batch context"`` (none:
    all products). ``held`` are operands that a later call finds in a CPU's last cache as far as they fit: the product
    of axes that they grow with, and the bytes for each under given keys; beyond the cache each byte costs more.
    """

    name: str
    about: str
    axes: tuple[GridAxis, ...]
    prepare: Prepare
    work: Callable[[Point], Work]
    variants: tuple[Mapping[str, str | int], ...] = ({},)
    devices: tuple[str, ...] = ("cpu", "cuda")
    times: Scale = "log"
    finish: Callable[[], None] | None = None
    lacking: Callable[[str], str | None] = lambda device: None
    on_cuda: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    threads: int = 1
    terms: tuple[str, ...] = ()
    held: tuple[tuple[str, Callable[[Point], float]], ...] = ()

    def on(self, device: str) -> Op:
        """The op with the axes and variants of a device; on a GPU operands are not found in a cache."""
        return dataclasses.replace(self, **self.on_cuda, held=()) if device == "cuda" else self

    def table_axes(self) -> tuple[Axis, ...]:
        """The axes as a profile table has them."""
        return tuple(Axis(a.name, a.scale) for a in self.axes)

    def prior_terms(self, keys: Point) -> tuple[Term, ...]:
        """The terms of its prior under ``keys``: those it names, and each operand beyond each cache."""
        cache = last_cache_bytes()
        beyond = () if cache is None else (Term(self._exponents(product), cache * _OWN_SHARE / bytes_each(keys))
                                           for product, bytes_each in self.held)
        return (*(Term(self._exponents(product)) for product in self.terms), *beyond) if self.terms else ()

    def _exponents(self, product: str) -> tuple[int, ...]:
        powers = Counter(product.split())
        assert powers.keys() <= {a.name for a in self.axes}, f"{self.name}: {product!r} names no axes of it"
        return tuple(powers[a.name] for a in self.axes)


def in_turn(make: Callable[[], Callable[[], Any]], held_bytes: float, device: str) -> Prepared:
    """A call ready to be timed whose operands are found as a real program leaves them.

    On a GPU several copies of the operands take turns, so many that none is still in the last-level cache when its
    turn comes again; a weight matrix or a KV cache of a served model is not there either. On a CPU there is one copy:
    its caches are small beside the operands that matter.
    """
    copies = 1 if device == "cpu" else min(GRAPH_CALLS, max(1, int(_COLD_BYTES // max(held_bytes, 1.0))))
    calls = itertools.cycle([make() for _ in range(copies)])
    return Prepared(lambda: next(calls)())


def drawn(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Normal float32 numbers; a large array repeats its first million: drawing more would outlast measuring."""
    return np.resize(rng.standard_normal(min(_DRAWN, math.prod(shape)), dtype=np.float32), shape)


def families() -> dict[str, tuple[Op, ...]]:
    """Every family's ops by module name, sorted."""
    here = sorted(m.name for m in pkgutil.iter_modules(importlib.import_module("profilers").__path__))
    modules = {name: importlib.import_module(f"profilers.{name}") for name in here} | profiled()
    return {name: tuple(module.OPS) for name, module in modules.items() if hasattr(module, "OPS")}


def ops_of(names: Sequence[str], device: str) -> list[tuple[str, Op]]:
    """(family, op) for names of families or ops (none: everything) that run on ``device``.

    Raises:
        SpecError: no such family or op; names the nearest.
    """
    known = families()
    everything = [(family, op) for family, ops in known.items() for op in ops]
    allowed = [*known, *(op.name for _, op in everything if op.name not in known)]
    for name in names:
        if name not in allowed:
            close = nearest(name, allowed)
            raise SpecError(f"no kernel family or op is called {name!r}", allowed=allowed,
                            hint=f"did you mean {close!r}?" if close else None, next_command="wb profile --help")
    return [(family, op.on(device)) for family, op in everything
            if device in op.devices and (not names or family in names or op.name in names)]
