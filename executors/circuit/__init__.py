"""circuit: runs a staged and kernelised quantum circuit (Atlas, arXiv 2408.09055).

``simulate`` plays a plan on a described cluster, ``run`` executes it here, ``verify`` compares the run's outputs with
an independent reference. The files, in the order of the work: ``lower`` (gates to primitives), ``tiling`` (primitives
to tile kernels), ``emit`` (kernels to a flat program), ``compiled`` and ``interpreted`` (two engines for it), ``local``
(a circuit in one memory), ``sharded`` (a plan's stages and exchanges), ``run``, ``ranks``, ``outofcore``, ``gpu``
(where shards live), ``measure`` (what is read from a state).
"""

from executors.circuit.run import run, verify
from executors.circuit.sections import sections
from executors.circuit.simulate import simulate

__all__ = ["run", "sections", "simulate", "verify"]
