"""What is asked and what is answered: operators, cluster and batch of a problem; stages and proof of a plan.

Symbols (paper -> ours): G_C operator graph -> ``Problem.model``; B -> ``batch_samples``; M_d -> ``memory_bytes``;
S_i = (G_i, b_i, D_i, Pi_i) -> ``Stage`` (operators, micro_batch_samples, devices, forwards_per_turn k and
in_flight_samples i); TPS -> ``Stage.seconds_per_sample``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Literal

from annotated_types import Ge, Gt, MinLen

from workbench.costs import Source
from workbench.plan import Certificate
from workbench.spec import about, spec

__all__ = ["Argument", "Cluster", "Edge", "Family", "FileModel", "Flow", "Kernel", "Layer", "LinkRate", "Model",
           "Module", "ModuleModel", "Operator", "PlainGraph", "Plan", "Problem", "Run", "Stage"]

Family = Literal["multi-modal", "dlrm", "candle-uno", "transformer"]
Optimizer = Literal["sgd", "momentum", "adam"]
Positive = Annotated[int, Ge(1)]
Amount = Annotated[float, Ge(0)]


@spec
class Kernel:
    """Work of one operator that a cost model prices; sizes are those of one sample."""

    op: Literal["gemm", "elementwise"] = about("Operation of the cost model.")
    rows: Amount = about("gemm: rows (m) a sample.", default=0.0)
    columns: Amount = about("gemm: columns (n).", default=0.0)
    inner: Amount = about("gemm: inner size (k).", default=0.0)
    bytes: Amount = about("elementwise: bytes moved a sample.", default=0.0)
    count: Annotated[float, Gt(0)] = about("How often the forward pass does it.", default=1.0)


@spec
class Argument:
    """One tensor that a module takes; the batch comes first and is not part of ``shape``."""

    shape: tuple[Positive, ...] = about("Shape of one sample.")
    dtype: Literal["float", "int64"] = about("float: normal numbers; int64: whole numbers from 0.", default="float")
    below: Positive = about("int64: every number is below this.", default=2)


@spec
class Module:
    """An ``nn.Module`` of the user's: who makes it, what it takes, and where it may be cut."""

    module: str = about("FILE.py:NAME or PACKAGE.MODULE:NAME of a function without arguments that returns the module.")
    arguments: Annotated[tuple[Argument, ...], MinLen(1)] = about("What forward takes, in order.")
    layers: tuple[str, ...] = about("Names of submodules that stay whole (* matches any text); absent: every module "
                                    "of torch.nn that holds no list of others.", default=())


@spec
class Layer:
    """What an operator computes when it is run for real; inputs are joined along the last axis in edge order."""

    kind: Literal["dense", "embedding", "concat", "transformer", "imported"] = about(
        "dense: linear and tanh; embedding: a bag of rows; concat: joins its inputs; transformer: an encoder layer; "
        "imported: the part of a module that bears the operator's name.")
    inputs: Annotated[int, Ge(0)] = about("Width of the operator's own data; 0 when it reads only other operators.",
                                          default=0)
    width: Positive = about("Width of the output.")
    rows: Positive = about("embedding: rows of the table.", default=1)
    bag: Positive = about("embedding: entries a sample, concatenated.", default=1)
    tokens: Positive = about("transformer: sequence length.", default=1)
    heads: Positive = about("transformer: attention heads.", default=1)
    hidden: Positive = about("transformer: width of the feed-forward layer.", default=1)
    imported: Module | None = about("imported: the module it is a part of.", default=None)

    def __post_init__(self) -> None:
        if (self.kind == "imported") == (self.imported is None):
            raise ValueError('layer: kind = "imported" and the key imported go together')


@spec
class Operator:
    """One node of the model: times, memory, and optionally what it computes.

    Times come from one of: tables by local batch, seconds a sample, kernels priced by the cost model, or, with a layer
    and none of these, whole layers measured by ``wb profile pipeline``.
    """

    name: str = about("Name, unique in the model.")
    forward_s: Mapping[int, Amount] = about("Forward seconds by local batch in samples.", default_factory=dict)
    backward_s: Mapping[int, Amount] = about("Backward seconds by local batch in samples.", default_factory=dict)
    forward_s_per_sample: Amount | None = about("Forward seconds a sample, where only that is known.", default=None)
    backward_s_per_sample: Amount | None = about("Backward seconds a sample, where only that is known.", default=None)
    kernels: tuple[Kernel, ...] = about("Forward work for the cost model; backward does it twice.", default=())
    weight_bytes: Amount = about("Parameters.", default=0.0)
    saved_bytes_per_sample: Amount = about("Activations kept from forward to backward.", default=0.0)
    output_bytes_per_sample: Amount = about("Size of its output tensor.", default=0.0)
    source: Source = about("How given times are known.", default="analytic")
    layer: Layer | None = about("What it computes; needed only to run for real.", default=None)

    def __post_init__(self) -> None:
        ways = bool(self.forward_s) + (self.forward_s_per_sample is not None) + bool(self.kernels)
        if ways > 1:
            raise ValueError(f"operator {self.name!r}: give tables, seconds a sample, or kernels, not several")
        if set(self.forward_s) != set(self.backward_s):
            raise ValueError(f"operator {self.name!r}: forward_s and backward_s need the same local batches")
        if (self.forward_s_per_sample is None) != (self.backward_s_per_sample is None):
            raise ValueError(f"operator {self.name!r}: forward_s_per_sample and backward_s_per_sample go together")


@spec
class Edge:
    """The output of one operator is an input of another."""

    producer: str = about("Operator whose output it is.")
    consumer: str = about("Operator that reads it.")
    bytes_per_sample: Amount | None = about("Size; absent: the producer's output_bytes_per_sample.", default=None)


@spec
class PlainGraph:
    """The plain form of a graph file: the same ``operators`` and ``edges`` as in a problem."""

    operators: Annotated[tuple[Operator, ...], MinLen(1)] = about("The operators.")
    edges: tuple[Edge, ...] = about("Which operator reads which.", default=())


@spec
class Model:
    """A model family with the paper's shapes; absent sizes take the family's own."""

    family: Family = about("Which generator makes the operator graph.")
    branches: Positive | None = about("Parallel branches (dlrm: of each of its two kinds).", default=None)
    layers: Positive | None = about("Layers a branch (transformer: in all).", default=None)
    width: Positive | None = about("Width of feed-forward layers, or the embedding of a transformer.", default=None)
    tokens: Positive | None = about("Sequence length.", default=None)
    heads: Positive | None = about("Attention heads.", default=None)
    rows: Positive | None = about("dlrm: rows of an embedding table.", default=None)
    bag: Positive | None = about("dlrm: entries of a bag.", default=None)
    dim: Positive | None = about("dlrm: width of an embedding row.", default=None)
    tail: Annotated[int, Ge(0)] | None = about("Feed-forward layers after the join.", default=None)


@spec
class FileModel:
    """An operator graph in a file."""

    path: str = about("The file; a name of the data registry is fetched (see wb traces list).")
    format: Literal["dnn-partitioning", "piper", "plain"] = about("How to read it.")
    time_unit_s: Annotated[float, Gt(0)] = about("Seconds of one time unit in the file.", default=1e-3)


@spec
class ModuleModel(Module):
    """An ``nn.Module``, read through torch.export when it is first asked about and kept until its source changes."""

    measure: Literal["cpu", "cuda"] | None = about(
        "Device on which its layers are timed while importing; absent: kernels priced by [costs].", default=None)
    samples: Annotated[tuple[Positive, ...], MinLen(1)] = about("Local batches that are timed.",
                                                                default=(1, 2, 4, 8, 16, 32))

    @property
    def source(self) -> Module:
        """The module alone."""
        return Module(module=self.module, arguments=self.arguments, layers=self.layers)


@spec
class LinkRate:
    """A link: a message of n bytes takes latency_s + n / bytes_per_s."""

    latency_s: Amount = about("Time of the smallest message.")
    bytes_per_s: Annotated[float, Gt(0)] = about("Rate in one direction, per device.")


@spec
class Cluster:
    """Equal devices in machines: fast links inside, slow links between."""

    devices: Positive = about("How many devices there are; some may stay idle.")
    devices_per_machine: Positive = about("Devices that the fast links connect.")
    memory_bytes: Annotated[float, Gt(0)] = about("Memory of one device.")
    inside: LinkRate = about("Link between devices of one machine.")
    between: LinkRate = about("Link between machines.")
    device: str | None = about("Name in the hardware catalogue, for kernels; absent with given times.", default=None)
    dtype: str = about("Number format of the kernels.", default="fp32")


@spec
class Run:
    """How ``wb run`` executes the plan on ranks."""

    mode: Literal["compute", "paced"] = about("compute: real layers; paced: sleeps instead, real messages.",
                                              default="compute")
    steps: Positive = about("Training steps.", default=2)
    dtype: Literal["fp32", "bf16"] = about("Number format of weights and activations.", default="fp32")
    learning_rate: Annotated[float, Gt(0)] = about("Step size.", default=1e-2)
    jitter_s: Amount = about("Longest random delay before each task (tests of the schedule).", default=0.0)
    time_scale: Annotated[float, Gt(0)] = about("paced: real seconds a predicted second.", default=1.0)
    timeout_s: Annotated[float, Gt(0)] = about("Longest wait for a message before the run ends with an error.",
                                               default=20.0)
    seed: int = about("Seed of weights and data.", default=0)


@spec
class Problem:
    """Which operators form which pipeline stages, on how many devices, with which micro-batches and schedule."""

    model: Model | FileModel | ModuleModel | None = about(
        "Generator, file or nn.Module of the operator graph; absent: operators.", default=None)
    operators: tuple[Operator, ...] = about("The operator graph itself.", default=())
    edges: tuple[Edge, ...] = about("Which operator reads which.", default=())
    batch_samples: Positive = about("Mini-batch B: samples between two weight updates.")
    cluster: Cluster = about("Devices and links.")
    optimizer: Optimizer = about("Decides the optimizer's memory: 0, 1 or 2 copies of the weights.", default="sgd")
    micro_batches: Annotated[tuple[Positive, ...], MinLen(1)] | None = about(
        "Micro-batch sizes allowed; absent: powers of two that divide the mini-batch.", default=None)
    max_forwards_per_turn: Positive = about("Largest k of kFkB that is tried.", default=4)
    transfers: Literal["overlapped", "blocking"] = about(
        "overlapped: links work beside the devices; blocking: a device waits while it receives.", default="overlapped")
    workspace_bytes: Amount = about("Memory of a device that stages may not use.", default=0.0)
    run: Run = about("How the plan is executed.", default=Run())

    def __post_init__(self) -> None:
        if (self.model is None) == (not self.operators):
            raise ValueError("give either model or operators")
        twice = [n for n, k in Counter(o.name for o in self.operators).items() if k > 1]
        if twice:
            raise ValueError(f"operators: the name {twice[0]!r} is used more than once")
        known = {o.name for o in self.operators}
        for e in self.edges:
            for end in (e.producer, e.consumer):
                if end not in known:
                    raise ValueError(f"edges: there is no operator {end!r}")
        strange = [b for b in self.micro_batches or () if self.batch_samples % b]
        if strange:
            raise ValueError(f"micro_batches: {strange[0]} does not divide the mini-batch of {self.batch_samples}")

    @property
    def menu(self) -> tuple[int, ...]:
        """Micro-batch sizes allowed, ascending."""
        if self.micro_batches is not None:
            return tuple(sorted(set(self.micro_batches)))
        return tuple(b for b in (1 << p for p in range(self.batch_samples.bit_length())) if self.batch_samples % b == 0)

    @property
    def weight_copies(self) -> int:
        """Weights, gradients and optimizer state, in units of the weights."""
        return 2 + {"sgd": 0, "momentum": 1, "adam": 2}[self.optimizer]


@spec
class Stage:
    """A convex set of operators on equal replicas, with its micro-batch and kFkB schedule."""

    operators: tuple[str, ...] = about("Its operators, in topological order.")
    devices: tuple[int, ...] = about("Devices of its replicas; each takes an equal slice of every micro-batch.")
    micro_batch_samples: int = about("Micro-batch size b.")
    forwards_per_turn: int = about("k of kFkB: so many forwards, then so many backwards, in turn.")
    in_flight_samples: int = about("Samples whose activations are held at most (i).")
    forward_s: float = about("Forward of one micro-batch.")
    backward_s: float = about("Backward of one micro-batch.")
    all_reduce_s: float = about("Sum of weight gradients over the replicas, once a mini-batch.")
    update_s: float = about("Optimizer step, once a mini-batch; 0 where nothing says what it takes.", default=0.0)
    weight_bytes: float = about("Parameters of one replica.")
    saved_bytes_per_sample: float = about("Activations and received tensors held for one sample in flight.")
    memory_bytes: float = about("Predicted peak on each of its devices.")


@spec
class Flow:
    """What one stage sends another: forward activations, and as many bytes of gradients back."""

    producer: int = about("Index of the sending stage.")
    consumer: int = about("Index of the receiving stage.")
    bytes_per_sample: float = about("Size for one sample; 0: an order without data.")
    link: Literal["inside", "between"] = about("Whether all its devices stand in one machine.")


@spec
class Plan:
    """Pipeline stages in topological order, what flows between them, and the predicted iteration."""

    stages: Annotated[tuple[Stage, ...], MinLen(1)] = about("The stages.")
    flows: tuple[Flow, ...] = about("Edges between stages.")
    iteration_s: float = about("Predicted time of one mini-batch, from first forward to last all-reduce.")
    bottleneck_s_per_sample: float = about("Largest time per sample of any stage.")
    sequential: bool = about("Whether the stages were chained although the model branches.", default=False)
    candidates: int = about("Stage graphs whose iteration was simulated.", default=1)
    sources: Mapping[Source, float] = about("Share of the stages' compute time by how it is known.")
    certificate: Certificate = about("Why the plan should be believed.")
