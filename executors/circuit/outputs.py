"""The outputs a problem asks for, read from the stored state: as tables, one metric, and a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from executors.circuit.measure import amplitudes, expectation, marginal, norm, sample, save
from executors.circuit.state import Placement, State
from planners.circuit.outputs import Outputs, parse_pauli
from workbench.errors import SpecError
from workbench.outcome import Metric

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TABLES", "Add", "check_for_ranks", "read_outputs"]

TABLES = {"asked_amplitudes": "Amplitudes", "probabilities": "Probabilities", "samples": "Samples",
          "expectation": "Expectation of the observable"}
"""Tables that may come of it, with their captions."""
Add = Callable[[npt.NDArray[np.complex128]], npt.NDArray[np.complex128]]
"""The sum over all shards' processes of what each knows (for one process, what it knows)."""


def check_for_ranks(outputs: Outputs, placement: Placement, local_bits: int) -> None:
    """Whether ranks can give what is asked for: they keep their shards.

    Raises:
        SpecError: the state in a file, or X or Y on a qubit that numbers the ranks at the end.
    """
    if outputs.state_file is not None:
        raise SpecError("ranks keep their shards: the whole state is written by one process",
                        where="outputs.state_file", hint="run the spec without torchrun")
    for text in outputs.pauli_sum:
        for q, letter in parse_pauli(text).paulis.items():
            if letter != "Z" and placement.address[q] >= local_bits:
                raise SpecError(f"{letter}{q} mixes ranks: qubit {q} numbers them at the end",
                                where="outputs.pauli_sum", hint="run the spec without torchrun")


def read_outputs(outputs: Outputs, state: State, placement: Placement, *, qubits: int, add: Add | None = None,
                 shard: int = 0, shards: int = 1) -> tuple[dict[str, pd.DataFrame], tuple[Metric, ...]]:
    """Tables and metrics of what is asked for; the state file is written, whole or not at all.

    Args:
        outputs: what is asked for.
        state: this process's amplitudes.
        placement: where qubits lie.
        qubits: of the circuit.
        add: sums over the processes.
        shard: this process's number.
        shards: how many processes there are.
    """
    import pandas as pd

    total = add or (lambda values: values)
    tables: dict[str, pd.DataFrame] = {}
    metrics: list[Metric] = []
    if outputs.amplitudes:
        basis = [int(text, 2) for text in outputs.amplitudes]
        found = total(amplitudes(state, placement, basis, shard=shard))
        tables["asked_amplitudes"] = pd.DataFrame({"basis": outputs.amplitudes, "real": found.real,
                                                   "imag": found.imag})
    if outputs.probabilities:
        asked = outputs.probabilities
        share = total(marginal(state, placement, asked, shard=shard).astype(np.complex128)).real
        values = [format(x, f"0{len(asked)}b")[::-1] for x in range(len(share))]
        tables["probabilities"] = pd.DataFrame({" ".join(f"q{q}" for q in asked): values, "probability": share})
    if outputs.shots:
        drawn = _samples(outputs, state, placement, total, shard, shards)
        basis_states, counts = np.unique(drawn, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        tables["samples"] = pd.DataFrame({"basis": [format(int(x), f"0{qubits}b") for x in basis_states[order]],
                                          "count": counts[order]})
    if outputs.pauli_sum:
        terms = [parse_pauli(text) for text in outputs.pauli_sum]
        parts = np.array([expectation(state, placement, [term], shard=shard) for term in terms], dtype=np.complex128)
        each = total(parts).real
        tables["expectation"] = pd.DataFrame({"term": outputs.pauli_sum, "value": each})
        metrics.append(Metric(name="expectation", value=float(each.sum()), unit="", about="Of the sum of Pauli terms."))
    if outputs.state_file is not None:
        save(state, placement, Path(outputs.state_file), qubits=qubits)
    return tables, tuple(metrics)


def _samples(outputs: Outputs, state: State, placement: Placement, total: Add, shard: int, shards: int
             ) -> npt.NDArray[np.int64]:
    """Every process draws its part, as many as one common draw over the processes gives it."""
    weight = np.zeros(shards, dtype=np.complex128)
    weight[shard] = norm(state)
    share = total(weight).real
    counts = np.random.default_rng(outputs.seed).multinomial(outputs.shots, share / share.sum())
    mine = sample(state, placement, int(counts[shard]), rng=np.random.default_rng((outputs.seed, shard)), shard=shard)
    everyone = np.zeros(outputs.shots, dtype=np.complex128)
    first = int(counts[:shard].sum())
    everyone[first : first + len(mine)] = mine
    return total(everyone).real.round().astype(np.int64)
