"""What is read from a stored state: amplitudes, probabilities, samples, Pauli expectations, the state on disk.

Each function takes one shard's amplitudes (its number gives the high address bits) and returns that shard's part, so
that parts of several shards add up; a single-process state is shard 0. Work goes in chunks: nothing of the state's
size is allocated. Legend: a = address, x = basis state of the circuit, psi = amplitudes, in the stored order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from executors.circuit.state import Placement, State
from planners.circuit.outputs import PauliTerm, parse_pauli
from workbench.errors import SpecError
from workbench.files import atomic_path

__all__ = ["PauliTerm", "amplitudes", "expectation", "largest", "marginal", "norm", "parse_pauli", "sample", "save"]

CHUNK_BITS = 18
"""2^18 amplitudes a step: its temporaries stay in the last-level cache."""


def _bits(state: State) -> int:
    return len(state).bit_length() - 1


def _chunks(state: State) -> Iterator[tuple[int, State]]:
    step = 1 << CHUNK_BITS
    for start in range(0, len(state), step):
        yield start, state[start : start + step]


def norm(state: State) -> float:
    """Sum of probabilities of this shard, in double precision."""
    total = 0.0
    for _, part in _chunks(state):
        reals = part.view(part.real.dtype).astype(np.float64)
        total += float(np.dot(reals, reals))
    return total


def largest(state: State, count: int) -> npt.NDArray[np.int64]:
    """Addresses of this shard's ``count`` largest amplitudes, the largest first."""
    found, sizes = np.zeros(0, dtype=np.int64), np.zeros(0)
    for start, part in _chunks(state):
        weight = part.real**2 + part.imag**2
        if len(found) == count and weight.max() <= sizes[-1]:
            continue
        kept = min(count, len(part))
        best = np.sort(np.argpartition(-weight, kept - 1)[:kept])
        found, sizes = np.concatenate([found, start + best]), np.concatenate([sizes, weight[best]])
        order = np.argsort(-sizes, kind="stable")[:count]
        found, sizes = found[order], sizes[order]
    return found


def amplitudes(state: State, placement: Placement, basis: Sequence[int], *, shard: int = 0
               ) -> npt.NDArray[np.complex128]:
    """Amplitudes of basis states (qubit 0 = least significant bit), zero where another shard holds them."""
    address = placement.index(np.asarray(basis, dtype=np.int64))
    mine = address >> _bits(state) == shard
    result = np.zeros(len(address), dtype=np.complex128)
    result[mine] = state[address[mine] & (len(state) - 1)]
    return result * placement.factor


def marginal(state: State, placement: Placement, qubits: Sequence[int], *, shard: int = 0
             ) -> npt.NDArray[np.float64]:
    """Probability of each value of some qubits, shape (2^k,); ``qubits[0]`` is the least significant bit of the index.

    Raises:
        SpecError: a qubit twice or unknown.
    """
    if len(set(qubits)) != len(qubits) or any(not 0 <= q < len(placement.address) for q in qubits):
        raise SpecError(f"the qubits {list(qubits)} are not distinct qubits of the circuit",
                        allowed=[f"0 to {len(placement.address) - 1}"])
    result = np.zeros(1 << len(qubits))
    for start, part in _chunks(state):
        address = (np.arange(start, start + len(part)) | shard << _bits(state)) ^ placement.flip
        key = np.zeros(len(part), dtype=np.int64)
        for i, q in enumerate(qubits):
            key |= (address >> placement.address[q] & 1) << i
        weight = part.real.astype(np.float64) ** 2 + part.imag.astype(np.float64) ** 2
        result += np.bincount(key, weights=weight, minlength=len(result))
    return result


def sample(state: State, placement: Placement, count: int, *, rng: np.random.Generator, shard: int = 0
           ) -> npt.NDArray[np.int64]:
    """``count`` basis states drawn from this shard's probabilities (normalised), in the order of their addresses."""
    weights = np.array([np.sum(np.abs(part.astype(np.complex128)) ** 2) for _, part in _chunks(state)])
    drawn = rng.multinomial(count, weights / weights.sum())
    found = []
    for (start, part), times in zip(_chunks(state), drawn, strict=True):
        if times:
            running = np.cumsum(np.abs(part.astype(np.complex128)) ** 2)
            found.append(start + np.searchsorted(running, rng.random(times) * running[-1], side="right"))
    address = np.sort(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)
    return placement.basis(address | shard << _bits(state))


def expectation(state: State, placement: Placement, terms: Sequence[PauliTerm], *, shard: int = 0) -> float:
    """Expectation of a sum of Pauli products, this shard's part.

    Raises:
        SpecError: a term flips (X, Y) a qubit that numbers the shard: bring it inside first (one shard has all).
    """
    total = 0.0
    for term in terms:
        flips, signs, ys = _masks(placement, term)
        if flips >> _bits(state):
            raise SpecError("an X or Y lies on a qubit that numbers the shard", hint="gather the state in one shard")
        value = _pauli(state, flips, signs, shard << _bits(state))
        turned = (placement.flip & signs).bit_count() & 1
        total += term.coefficient * float((value * (1j) ** ys).real) * (-1.0 if turned else 1.0)
    return total


def _masks(placement: Placement, term: PauliTerm) -> tuple[int, int, int]:
    """Address masks of flips and signs, and the number of Y: X^f Z^s with i for every Y = i X Z."""
    flips = sum(1 << placement.address[q] for q, p in term.paulis.items() if p in "XY")
    signs = sum(1 << placement.address[q] for q, p in term.paulis.items() if p in "YZ")
    return flips, signs, sum(p == "Y" for p in term.paulis.values())


def _pauli(state: State, flips: int, signs: int, high: int) -> complex:
    """Sum over a of conj(psi[a xor flips]) (-1)^(a . signs) psi[a]."""
    total = 0j
    inner = min(len(state), 1 << CHUNK_BITS) - 1
    for start, part in _chunks(state):
        other = start ^ (flips & ~inner)
        partner = state[other : other + len(part)]
        index = np.arange(len(part))
        left = partner if not flips & inner else partner[index ^ (flips & inner)]
        odd = np.bitwise_count((index | start | high) & signs) & 1
        product = np.conj(left.astype(np.complex128)) * part
        total += complex(np.sum(np.where(odd, -product, product)))
    return total


def save(state: State, placement: Placement, path: Path, *, qubits: int) -> None:
    """Write the whole state in the circuit's own order as a NumPy ``.npy`` file, chunk by chunk (shape (2^qubits,)).

    Raises:
        WorkbenchError: the file cannot be written, or not all of it; none is left then.
    """
    header = {"descr": np.lib.format.dtype_to_descr(state.dtype), "fortran_order": False, "shape": (1 << qubits,)}
    step = 1 << min(CHUNK_BITS, qubits)
    with atomic_path(path) as part, part.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
        for start in range(0, 1 << qubits, step):
            piece = state[placement.index(np.arange(start, start + step))]
            out.write((piece * placement.factor).astype(state.dtype).tobytes())
