"""What the study is asked and what it answers: a program in primitives, limits on kernels, and the kernels to run.

Paper: Korch, arXiv 2406.09465. Legend: K_i -> ``Kernel``; c_i -> ``Kernel.seconds``; a plan: the u_i that are 1, in an
order that runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from annotated_types import Ge, MinLen

from planners.orchestration.graph import PrimitiveGraph
from workbench.costs import Source
from workbench.errors import SpecError
from workbench.plan import Certificate
from workbench.spec import about, spec

__all__ = ["Kernel", "Limits", "Plan", "Problem", "Program", "Space"]

Space = Literal["cone", "convex"]


@spec
class Program:
    """Where the program comes from: exactly one of ``captured``, ``file``, ``inline``."""

    captured: str | None = about("Model whose primitive graph is shipped or can be captured, e.g. 'candy'.",
                                 default=None)
    batch: int = about("Batch size of the captured graph.", default=1)
    resolution: int | None = about("Height and width (tokens for a text model) of the captured graph; absent: the "
                                   "only one that is shipped.", default=None)
    file: str | None = about("Primitive graph in JSON.", default=None)
    inline: PrimitiveGraph | None = about("The graph itself.", default=None)

    def __post_init__(self) -> None:
        given = [name for name in ("captured", "file", "inline") if getattr(self, name) is not None]
        if len(given) != 1:
            raise SpecError(f"a program comes from exactly one place, not {len(given)}", where="program",
                            allowed=["captured", "file", "inline"])


@spec
class Limits:
    """Which groups of primitives may become one kernel."""

    space: Space = about("cone: every member leads to the output; convex: and nothing outside lies between (paper).",
                         default="cone")
    largest: Annotated[int, Ge(1)] = about("Most primitives of a kernel grown step by step.", default=10)
    most_linear: Annotated[int, Ge(0)] = about(
        "Most compute-bound primitives of a kernel with others; 0: they run alone (paper).", default=1)
    prologues: bool = about("Whether a kernel may also compute what its compute-bound primitive reads.", default=False)
    per_output: Annotated[int, Ge(1)] = about("Most kernels grown from one primitive, smallest first.", default=160)
    whole: bool = about("Whether whole cones, pairs of compute-bound primitives, components and the whole program are "
                        "kernels too, whatever their size.", default=True)
    unsafe: bool = about("Whether rewrites named unsafe-… are offered: softmax without its maximum overflows for large "
                         "logits.", default=False)
    without: tuple[str, ...] = about("Rewrites that are not offered, by name.", default=())


@spec
class Problem:
    """Choose the kernels of a tensor program."""

    program: Program = about("The program.")
    limits: Limits = about("Which kernels are considered.", default=Limits())
    backends: Annotated[tuple[str, ...], MinLen(1)] = about(
        "Back-ends a kernel may run on; the fastest one measured is taken.", default=("eager", "inductor", "library"))
    boundaries: bool = about("Whether the fitted cost of a kernel's boundary is added to each kernel.", default=True)
    tie_tolerance: Annotated[float, Ge(0)] = about(
        "Plans within this share of the least count as equal; the one with fewest executions is taken.", default=0.0)
    device: str | None = about("Device of the hardware catalogue whose roofline prices kernels nobody measured; "
                               "absent: only measured kernels.", default=None)


@spec
class Kernel:
    """A kernel of the plan."""

    primitives: Annotated[tuple[str, ...], MinLen(1)] = about("Primitives it runs, by name.")
    inputs: tuple[str, ...] = about("Tensors it reads, in the order it takes them.")
    outputs: Annotated[tuple[str, ...], MinLen(1)] = about("Tensors it stores.")
    backend: str = about("What runs it.")
    structure: str = about("Digest of its structure: the key of its cost.")
    seconds: float = about("Its time alone.")
    boundary_s: float = about("What running it inside a program adds.", default=0.0)
    source: Source = about("How its time is known.")


@spec
class Plan:
    """Kernels in the order in which they run."""

    kernels: tuple[Kernel, ...] = about("The kernels.")
    graph: str = about("Digest of the program's graph.")
    rewrites: tuple[str, ...] = about("Rewrites whose primitives are run.", default=())
    redundant: int = about("Executions of primitives beyond the first.", default=0)
    skipped: int = about("Primitives of the captured program that no kernel runs.", default=0)
    enumerated: int = about("Kernels considered that differ in structure.")
    priced: int = about("Of those, kernels whose time is known.")
    space: Space = about("Space the kernels were taken from.")
    sources: Mapping[Source, float] = about("Share of the predicted time by how it is known; sums to 1.")
    certificate: Certificate = about("Why the plan should be believed.")
