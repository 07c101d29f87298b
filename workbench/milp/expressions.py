"""Arrays of affine expressions in a model's variables: what numpy arithmetic makes of a block of variables.

An ``Affine`` of shape S holds, for every entry r, ``sum_j vals x_j + const_r`` as coordinate triples
``(rows, cols, vals)``; all operations are vectorised, none loops over entries. Axes may carry labels, which survive
slicing, sums and element-wise arithmetic, so that rows made from an expression are named after what they constrain.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.errors import nearest

__all__ = ["Affine", "Axis", "AxisLike", "Variables", "element_name"]

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
AxisLike = int | Sequence[Hashable]


class Axis:
    """One dimension of a block: its size and, if it has them, the label of each position."""

    __slots__ = ("labels", "lookup", "size")

    def __init__(self, like: AxisLike) -> None:
        self.labels: tuple[Hashable, ...] | None = None
        self.lookup: dict[Hashable, int] = {}
        if isinstance(like, int | np.integer):
            self.size = int(like)
            return
        self.labels = tuple(like)
        self.size = len(self.labels)
        self.lookup = {label: position for position, label in enumerate(self.labels)}
        if len(self.lookup) < self.size:
            twice = next(label for i, label in enumerate(self.labels) if self.lookup[label] != i)
            raise ValueError(f"label {twice!r} occurs twice on one axis")

    def knows(self, key: Any) -> bool:
        """Whether ``key`` is a label of this axis (anything may be asked, hashable or not)."""
        try:
            return key in self.lookup
        except TypeError:
            return False

    def position(self, key: Any) -> Any:
        """``key`` (a label, a position, a slice, a mask or a list of labels or positions) as numpy wants it."""
        if isinstance(key, slice):
            return key
        if isinstance(key, list | np.ndarray):
            if (isinstance(key, np.ndarray) and key.dtype == bool) or not self.lookup:
                return np.asarray(key)
            return np.array([self.position(k) for k in key], dtype=np.intp)
        if self.knows(key):
            return self.lookup[key]
        if isinstance(key, int | np.integer) and not isinstance(key, bool):
            return int(key)
        close = nearest(str(key), map(str, self.labels or ()))
        raise KeyError(f"no label {key!r}" + (f"; did you mean {close!r}?" if close else ""))

    def taken(self, key: Any) -> Axis:
        """The axis that remains after indexing with numpy key ``key`` (a slice or a one-dimensional array)."""
        kept = np.arange(self.size)[key]
        return Axis(len(kept)) if self.labels is None else _axis([self.labels[i] for i in kept])

    def name(self, position: int) -> str:
        """How a position is printed."""
        return str(position if self.labels is None else self.labels[position])


def _axis(labels: list[Hashable]) -> Axis:
    """Labelled when the labels are distinct, else only counted (an index list may repeat entries)."""
    return Axis(labels) if len(set(labels)) == len(labels) else Axis(len(labels))


def element_name(name: str, axes: tuple[Axis, ...], flat: int) -> str:
    """``name[label,label]`` of the entry at C-order position ``flat``."""
    if not axes:
        return name
    where = np.unravel_index(flat, tuple(a.size for a in axes))
    return f"{name}[{','.join(axis.name(int(i)) for axis, i in zip(axes, where, strict=True))}]"


def _merged(left: tuple[Axis, ...], right: tuple[Axis, ...], shape: tuple[int, ...]) -> tuple[Axis, ...]:
    """Axes of a broadcast result: the labels of whichever side has them at full size."""
    result = []
    for back in range(len(shape), 0, -1):
        sides = [axes[-back] for axes in (left, right) if len(axes) >= back]
        fit = [a for a in sides if a.size == shape[-back]]
        result.append(next((a for a in fit if a.labels is not None), fit[0]))
    return tuple(result)


class Affine:
    """Array of affine expressions; supports ``+ - * / @``, ``sum``, indexing by label or position, broadcasting.

    Multiplying two expressions raises ``TypeError``: models are linear.
    """

    __slots__ = ("axes", "cols", "const", "family", "rows", "vals")
    __array_ufunc__ = None  # numpy and scipy.sparse leave mixed arithmetic to us

    def __init__(self, *, rows: Ints, cols: Ints, vals: Floats, const: Floats, axes: tuple[Axis, ...],
                 family: object) -> None:
        self.rows, self.cols, self.vals, self.const, self.axes, self.family = rows, cols, vals, const, axes, family

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes; () for a single expression."""
        return tuple(a.size for a in self.axes)

    @property
    def size(self) -> int:
        """Number of expressions."""
        return math.prod(self.shape)

    def _with(self, **changes: Any) -> Affine:
        parts: dict[str, Any] = {"rows": self.rows, "cols": self.cols, "vals": self.vals, "const": self.const,
                                 "axes": self.axes, "family": self.family}
        return Affine(**(parts | changes))

    def _take(self, positions: Ints, axes: tuple[Axis, ...]) -> Affine:
        """Entries at flat ``positions``, in that order, repeats allowed."""
        order = np.argsort(self.rows, kind="stable")
        counts = np.bincount(self.rows, minlength=self.size)
        first = np.concatenate(([0], np.cumsum(counts)))[positions]
        lengths = counts[positions]
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        entries = order[np.repeat(first - (ends - lengths), lengths) + np.arange(total)]
        return self._with(rows=np.repeat(np.arange(len(positions)), lengths), cols=self.cols[entries],
                          vals=self.vals[entries], const=self.const[positions], axes=axes)

    def _spread(self, shape: tuple[int, ...]) -> Affine:
        """Broadcast to ``shape``; the caller sets the axes."""
        if self.shape == shape:
            return self
        positions = np.broadcast_to(np.arange(self.size).reshape(self.shape), shape).ravel()
        return self._take(positions, tuple(Axis(n) for n in shape))

    def _index(self, key: Any) -> tuple[Ints, tuple[Axis, ...]]:
        """Flat positions selected by ``key`` and the axes they have."""
        if isinstance(key, np.ndarray) and key.dtype == bool and key.shape == self.shape:
            chosen = np.flatnonzero(key)
            return chosen, (self.axes[0].taken(chosen),) if len(self.axes) == 1 else (Axis(len(chosen)),)
        if not isinstance(key, tuple) or (len(self.axes) == 1 and self.axes[0].knows(key)):
            key = (key,)
        named = sum(k is not None and k is not Ellipsis for k in key)
        if named > len(self.axes):
            raise IndexError(f"{named} indices for {len(self.axes)} axes")
        fill = (slice(None),) * (len(self.axes) - named)
        at = next((i for i, k in enumerate(key) if k is Ellipsis), len(key))
        wanted: list[Any] = []
        axes: list[Axis] = []
        remaining = iter(self.axes)
        for k in key[:at] + fill + key[at + 1:]:
            if k is None:
                wanted.append(None)
                axes.append(Axis(1))
                continue
            axis = next(remaining)
            position = axis.position(k)
            wanted.append(position)
            if not isinstance(position, int):
                axes.append(axis.taken(position))
        positions = np.asarray(np.arange(self.size).reshape(self.shape)[tuple(wanted)])
        if positions.shape != tuple(a.size for a in axes):  # several index lists: numpy pairs them up
            axes = [Axis(n) for n in positions.shape]
        return positions.ravel(), tuple(axes)

    def __getitem__(self, key: Any) -> Affine:
        """Entries by label or position; slices, masks, lists, ``None`` and ``...`` as in numpy."""
        return self._take(*self._index(key))

    __iter__ = None  # an array of expressions is not a sequence: numpy would unpack it

    def sum(self, axis: int | tuple[int, ...] | None = None) -> Affine:
        """Sum over ``axis`` (all axes by default)."""
        count = len(self.axes)
        given = range(count) if axis is None else (axis,) if isinstance(axis, int) else axis
        gone = {a + count if a < 0 else a for a in given}
        kept = [i for i in range(count) if i not in gone]
        axes = tuple(self.axes[i] for i in kept)
        flat = np.arange(math.prod(a.size for a in axes)).reshape(
            [1 if i in gone else a.size for i, a in enumerate(self.axes)])
        target = np.broadcast_to(flat, self.shape).ravel()
        const = self.const.reshape(self.shape).sum(axis=tuple(gone)).ravel()
        return self._with(rows=target[self.rows], const=np.asarray(const, dtype=float), axes=axes)

    def __add__(self, other: Affine | ArrayLike) -> Affine:
        if not isinstance(other, Affine):
            values = _numbers(other)
            shape = np.broadcast_shapes(self.shape, values.shape)
            spread = self._spread(shape)
            axes = _merged(self.axes, tuple(map(Axis, values.shape)), shape)
            return spread._with(const=spread.const + np.broadcast_to(values, shape).ravel(), axes=axes)
        if other.family is not self.family:
            raise ValueError("the expressions belong to two models")
        shape = np.broadcast_shapes(self.shape, other.shape)
        a, b = self._spread(shape), other._spread(shape)
        return self._with(rows=np.concatenate((a.rows, b.rows)), cols=np.concatenate((a.cols, b.cols)),
                          vals=np.concatenate((a.vals, b.vals)), const=a.const + b.const,
                          axes=_merged(self.axes, other.axes, shape))

    def __mul__(self, other: ArrayLike) -> Affine:
        values = _numbers(other)
        if not np.isfinite(values).all():
            raise ValueError("a coefficient is not finite")
        shape = np.broadcast_shapes(self.shape, values.shape)
        spread, factors = self._spread(shape), np.broadcast_to(values, shape).ravel()
        axes = _merged(self.axes, tuple(map(Axis, values.shape)), shape)
        return spread._with(vals=spread.vals * factors[spread.rows], const=spread.const * factors, axes=axes)

    def __neg__(self) -> Affine:
        return self._with(vals=-self.vals, const=-self.const)

    def __sub__(self, other: Affine | ArrayLike) -> Affine:
        return self + (-other if isinstance(other, Affine) else -_numbers(other))

    def __rsub__(self, other: ArrayLike) -> Affine:
        return -self + other

    def __truediv__(self, other: ArrayLike) -> Affine:
        return self * (1.0 / _numbers(other))

    __radd__ = __add__
    __rmul__ = __mul__

    def __rmatmul__(self, other: Any) -> Affine:
        """``other @ self``: contracts the first axis with a vector, a dense matrix or a scipy sparse matrix."""
        return self._contract(other, first=True)

    def __matmul__(self, other: Any) -> Affine:
        """``self @ other``: contracts the last axis with a vector, a dense matrix or a scipy sparse matrix."""
        return self._contract(other, first=False)

    def _contract(self, other: Any, *, first: bool) -> Affine:
        if isinstance(other, Affine):
            raise TypeError("the product of two expressions is not linear")
        if not self.axes:
            raise ValueError("@ wants an expression with at least one axis; use * for a single one")
        if getattr(other, "ndim", 0) < 2 and not hasattr(other, "tocsr"):
            weights = _numbers(other)
            if weights.shape != (self.axes[0 if first else -1].size,):
                raise ValueError(f"@ of shapes {weights.shape} and {self.shape}")
            if not first:
                return (self * weights).sum(axis=-1)
            return (self * weights.reshape((-1,) + (1,) * (len(self.axes) - 1))).sum(axis=0)
        from scipy import sparse

        matrix = sparse.csr_array(other if first else other.T)
        made = Axis(matrix.shape[0])
        inner = self.axes[0 if first else -1].size
        if matrix.shape[1] != inner:
            raise ValueError(f"@ of shapes {np.shape(other)} and {self.shape}")
        rest = self.axes[1:] if first else self.axes[:-1]
        if rest:
            eye = sparse.eye_array(math.prod(a.size for a in rest), format="csr")
            matrix = sparse.csr_array(sparse.kron(matrix, eye) if first else sparse.kron(eye, matrix))
        width = int(self.cols.max(initial=-1)) + 1
        own = sparse.csr_array((self.vals, (self.rows, self.cols)), shape=(self.size, width))
        product = sparse.coo_array(matrix @ own)
        rows, cols = product.coords
        return self._with(rows=rows.astype(np.intp), cols=cols.astype(np.intp), vals=product.data,
                          const=matrix @ self.const, axes=(made, *rest) if first else (*rest, made))

    def value(self, x: Floats) -> Floats:
        """Numbers of shape ``self.shape`` at the point ``x`` (all variables of the model, flat)."""
        totals = np.bincount(self.rows, weights=self.vals * x[self.cols], minlength=self.size)
        return (totals + self.const).reshape(self.shape)

    def __repr__(self) -> str:
        return f"{type(self).__name__} of shape {self.shape} in {len(np.unique(self.cols))} variables"


class Variables(Affine):
    """A named block of decision variables, or a slice of one; ``index`` (shape of the block) is their place in x."""

    __slots__ = ("index", "name")

    def __init__(self, *, name: str, index: Ints, axes: tuple[Axis, ...], family: object) -> None:
        flat = index.ravel()
        super().__init__(rows=np.arange(flat.size), cols=flat, vals=np.ones(flat.size), const=np.zeros(flat.size),
                         axes=axes, family=family)
        self.name, self.index = name, index

    def __getitem__(self, key: Any) -> Variables:
        """Entries by label or position; slices, masks, lists, ``None`` and ``...`` as in numpy."""
        positions, axes = self._index(key)
        index = self.index.ravel()[positions].reshape(tuple(a.size for a in axes))
        return Variables(name=self.name, index=index, axes=axes, family=self.family)

    def __repr__(self) -> str:
        return f"Variables {self.name!r} of shape {self.shape}"


def _numbers(values: Any) -> Floats:
    if isinstance(values, Affine):
        raise TypeError("the product of two expressions is not linear")
    numbers = np.asarray(values, dtype=float)
    if np.isnan(numbers).any():
        raise ValueError("a coefficient is not a number")
    return numbers
