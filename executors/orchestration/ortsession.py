"""ONNX Runtime as a back-end (extra ``onnxruntime``): a structure as an ONNX model, run by a session of its own.

``prepare`` writes the model (weights are inputs, so one model serves every block with the same structure);
``fragment`` opens a session in which the weights at hand are initialisers, as they would be in an exported model, so
that the session may pack them. Tensors are bound by address: nothing is copied on the way in or out.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from executors.orchestration.collapse import argument, collapsed, dims, positional
from executors.orchestration.kernels import Cannot, Fragment, Operands, dtype_of, first_line
from planners.orchestration.candidates import Step, Structure, ValueRef
from planners.orchestration.views import View, contiguous_strides

__all__ = ["fragment", "lacking", "prepare", "version"]

_OPSET = 20
_PATTERNS = ("softmax", "norm")
_TYPES = {"float32": 1, "float64": 11, "int64": 7, "int32": 6, "bool": 9, "float16": 10}


def lacking() -> str | None:
    """Why there are no sessions here, or ``None``."""
    absent = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    return f"needs {' and '.join(absent)} (extra onnxruntime)" if absent else None


def version() -> str | None:
    """Version of ONNX Runtime, or ``None`` where it is not installed."""
    if lacking() is not None:
        return None
    import onnxruntime

    return str(onnxruntime.__version__)


def prepare(structure: Structure, device: str, threads: int) -> bytes:
    """The structure as a serialised ONNX model.

    Raises:
        Cannot: ONNX Runtime is not installed, or an operation or view has no counterpart.
    """
    del device, threads
    why = lacking()
    if why is not None:
        raise Cannot(why)
    return _Writer(collapsed(structure, _PATTERNS) or structure).model()


class _Writer:
    """Builds the ONNX graph of one structure."""

    def __init__(self, structure: Structure) -> None:
        import onnx

        self.onnx, self.structure = onnx, structure
        self.nodes: list[Any] = []
        self.initialisers: dict[str, Any] = {}
        self.fresh = 0
        self.seen: dict[tuple[str, tuple[View, ...]], str] = {}

    def model(self) -> bytes:
        """The serialised model; inputs ``in0`` …, outputs ``out0`` …."""
        s, helper = self.structure, self.onnx.helper
        for value in (*s.inputs, *(step.value for step in s.steps)):
            if value.dtype not in _TYPES:
                raise Cannot(f"no dtype {value.dtype} in ONNX")
        for o in s.outputs:
            if tuple(s.steps[o].value.strides) != contiguous_strides(s.steps[o].value.shape):
                raise Cannot("stores row-major tensors only")
        inputs = []
        for i, value in enumerate(s.inputs):
            if value.role == "constant":
                held = np.full(value.shape, value.fill, dtype=str(value.dtype))
                self.initialisers[f"in{i}"] = self.onnx.numpy_helper.from_array(held, f"in{i}")
                continue
            if tuple(value.strides) != contiguous_strides(value.shape):
                raise Cannot("reads row-major tensors only")
            inputs.append(helper.make_tensor_value_info(f"in{i}", _TYPES[value.dtype], list(value.shape)))
        for i, step in enumerate(s.steps):
            self._step(i, step)
        outputs = []
        for i, o in enumerate(s.outputs):
            self.add("Identity", [f"s{o}"], name=f"out{i}")
            value = s.steps[o].value
            outputs.append(helper.make_tensor_value_info(f"out{i}", _TYPES[value.dtype], list(value.shape)))
        graph = helper.make_graph(self.nodes, "kernel", inputs, outputs, list(self.initialisers.values()))
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
        made.ir_version = 10
        return bytes(made.SerializeToString())

    def add(self, op: str, inputs: Sequence[str], *, name: str | None = None, **attributes: Any) -> str:
        """A node with one output; the output's name."""
        if name is None:
            self.fresh += 1
            name = f"t{self.fresh}"
        self.nodes.append(self.onnx.helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Any, kind: str = "int64") -> str:
        """The name of an initialiser."""
        array = np.asarray(value, dtype=kind)
        name = f"c{kind}{array.shape}{array.tolist()}"
        self.initialisers.setdefault(name, self.onnx.numpy_helper.from_array(array, name))
        return name

    def operand(self, ref: ValueRef) -> str:
        """The name of an operand after its views."""
        name = f"in{ref.number}" if ref.origin == "in" else f"s{ref.number}"
        value = (self.structure.inputs if ref.origin == "in" else [s.value for s in self.structure.steps])[ref.number]
        shape = tuple(value.shape)
        for n, view in enumerate(ref.views):
            key = (name, ref.views[: n + 1])
            if key not in self.seen:
                self.seen[key] = self._view(name, view, shape)
            name = self.seen[key]
            shape = _shape_after(shape, view)
        return name

    def _view(self, x: str, view: View, shape: tuple[int, ...]) -> str:
        rank, a = len(shape), view.arguments
        if view.op in ("aten.view.default", "aten.unsqueeze.default", "aten.squeeze.default", "aten.squeeze.dim",
                       "aten.squeeze.dims"):
            return self.add("Reshape", [x, self.constant(list(_shape_after(shape, view)))])
        if view.op in ("aten.permute.default", "aten.transpose.int", "aten.t.default"):
            order = list(range(rank))
            if view.op == "aten.permute.default":
                order = [d % rank for d in a[0]]
            else:
                first, second = (a[0] % rank, a[1] % rank) if a else (0, 1)
                order[first], order[second] = order[second], order[first]
            return self.add("Transpose", [x], perm=order)
        if view.op == "aten.expand.default":
            return self.add("Expand", [x, self.constant(list(_shape_after(shape, view)))])
        if view.op == "aten.slice.Tensor":
            given: list[Any] = [*a, *[0, None, None, 1][len(a):]]
            dim, step = given[0], given[3]
            first, last, _ = slice(given[1], given[2]).indices(shape[dim % rank])
            return self.add("Slice", [x, *(self.constant([v]) for v in (first, last, dim % rank, step))])
        if view.op == "aten.select.int":
            return self.add("Gather", [x, self.constant(a[1] % shape[a[0] % rank])], axis=a[0] % rank)
        raise Cannot(f"no ONNX counterpart of the view {view.op}")

    def scalar_or(self, value: Any, operands: Sequence[str], kind: str) -> str:
        """The name of an argument that is an operand or a number."""
        if isinstance(value, Mapping) and "input" in value:
            return operands[value["input"]]
        if isinstance(value, (int, float)):
            return self.constant(value, kind)
        raise Cannot(f"no ONNX counterpart of the argument {value!r}")

    def _step(self, number: int, step: Step) -> None:
        operands = [self.operand(r) for r in step.operands]
        name = step.op.removeprefix("aten.")
        made: str | None = None
        if name in _UNARY and len(operands) == 1:
            made = self.add(_UNARY[name], operands)
        elif name in _BINARY:
            if step.attributes.get("alpha", 1) != 1 or step.attributes.get("rounding_mode") is not None:
                raise Cannot(f"no ONNX counterpart of {step.op} with {dict(step.attributes)}")
            both = [self.scalar_or(v, operands, step.value.dtype) for v in positional(step)[:2]]
            made = self.add(_BINARY[name], both)
        elif name in _REDUCE:
            rank = len(_shape(self.structure, step.operands[0]))
            axes = self.constant(list(dims(step, rank)))
            made = self.add(_REDUCE[name], [operands[0], axes], keepdims=int(bool(argument(step, 2, "keepdim", False))))
        elif name in _SPECIAL:
            made = _SPECIAL[name](self, step, operands)
        if made is None:
            raise Cannot(f"no ONNX counterpart of {step.op}")
        self.add("Identity", [made], name=f"s{number}")


def _shape(structure: Structure, ref: ValueRef) -> tuple[int, ...]:
    value = (structure.inputs if ref.origin == "in" else [s.value for s in structure.steps])[ref.number]
    shape = tuple(value.shape)
    for view in ref.views:
        shape = _shape_after(shape, view)
    return shape


def _shape_after(shape: tuple[int, ...], view: View) -> tuple[int, ...]:
    """Shape after a view, whatever the strides."""
    if view.op == "aten.view.default":
        sizes = list(view.arguments[0])
        if -1 in sizes:
            known = int(np.prod([s for s in sizes if s != -1]))
            sizes[sizes.index(-1)] = int(np.prod(shape)) // max(known, 1)
        return tuple(sizes)
    from executors.orchestration.kernels import view_layout
    from planners.orchestration.views import Layout

    layout = view_layout(Layout(shape, contiguous_strides(shape), 0), (view,))
    if layout is None or view.op in ("aten.unfold.default", "aten.as_strided.default"):
        raise Cannot(f"no ONNX counterpart of the view {view.op}")
    return tuple(layout.shape)


def _convolution(w: _Writer, step: Step, x: Sequence[str]) -> str:
    stride, padding, dilation, transposed, _, groups = positional(step)[3:9]
    if transposed:
        raise Cannot("no transposed convolutions")
    pads = [int(p) for p in padding]
    return w.add("Conv", x, strides=[int(s) for s in stride], pads=pads + pads, dilations=[int(d) for d in dilation],
                 group=int(groups))


def _clamp(w: _Writer, step: Step, x: Sequence[str]) -> str:
    low, high = argument(step, 1, "min"), argument(step, 2, "max")
    kind = step.value.dtype
    ends = [w.constant(v, kind) if v is not None else "" for v in (low, high)]
    return w.add("Clip", [x[0], *ends])


def _one_sided(which: str) -> Callable[[_Writer, Step, Sequence[str]], str]:
    def made(w: _Writer, step: Step, x: Sequence[str]) -> str:
        bound = w.constant(positional(step)[1], step.value.dtype)
        return w.add("Clip", [x[0], *([bound] if which == "min" else ["", bound])])

    return made


def _pool(w: _Writer, step: Step, x: Sequence[str]) -> str:
    given = positional(step)
    if step.op == "aten.avg_pool2d.default":
        rest = [*given[1:], *([None, [0, 0], False, True][len(given) - 2:] if len(given) < 6 else [])]
        kernel, stride, padding = rest[0], rest[1] or rest[0], rest[2] if len(rest) > 2 else [0, 0]
        pads = [int(p) for p in padding]
        return w.add("AveragePool", x, kernel_shape=list(kernel), strides=list(stride), pads=pads + pads,
                     count_include_pad=1)
    kernel = list(given[1])
    stride = list(given[2]) if len(given) > 2 and given[2] else kernel
    padding = list(given[3]) if len(given) > 3 else [0, 0]
    if len(padding) == 1:
        padding = padding * 2
    return w.add("MaxPool", x, kernel_shape=kernel, strides=stride, pads=padding + padding)


def _pad(mode: str) -> Callable[[_Writer, Step, Sequence[str]], str]:
    def made(w: _Writer, step: Step, x: Sequence[str]) -> str:
        given = positional(step)
        rank = len(step.value.shape)
        before, after = [0] * rank, [0] * rank
        for i in range(len(given[1]) // 2):
            before[rank - 1 - i], after[rank - 1 - i] = int(given[1][2 * i]), int(given[1][2 * i + 1])
        extra = [w.constant(argument(step, 2, "value", 0) or 0, step.value.dtype)] if mode == "constant" else []
        return w.add("Pad", [x[0], w.constant(before + after), *extra], mode=mode)

    return made


def _nearest(w: _Writer, step: Step, x: Sequence[str]) -> str:
    return w.add("Resize", [x[0], "", "", w.constant(list(step.value.shape))], mode="nearest",
                 coordinate_transformation_mode="asymmetric", nearest_mode="floor")


def _bilinear(w: _Writer, step: Step, x: Sequence[str]) -> str:
    corners = bool(argument(step, 2, "align_corners", False))
    return w.add("Resize", [x[0], "", "", w.constant(list(step.value.shape))], mode="linear",
                 coordinate_transformation_mode="align_corners" if corners else "half_pixel")


def _layer_norm(w: _Writer, step: Step, x: Sequence[str]) -> str:
    given = positional(step)
    shape, scale, bias, eps = given[1], given[2], given[3], given[4]
    kind = step.value.dtype
    names = [w.scalar_or(scale, x, kind) if scale is not None else w.constant(np.ones(shape), kind)]
    if bias is not None:
        names.append(w.scalar_or(bias, x, kind))
    return w.add("LayerNormalization", [x[0], *names], axis=-len(shape), epsilon=float(eps))


def _group_norm(w: _Writer, step: Step, x: Sequence[str]) -> str:
    given = positional(step)
    channels, groups, eps, kind = int(given[4]), int(given[6]), float(given[7]), step.value.dtype
    if groups != channels:
        raise Cannot("no group norm but instance norm")
    scale = w.scalar_or(given[1], x, kind) if given[1] is not None else w.constant(np.ones(channels), kind)
    bias = w.scalar_or(given[2], x, kind) if given[2] is not None else w.constant(np.zeros(channels), kind)
    return w.add("InstanceNormalization", [x[0], scale, bias], epsilon=eps)


def _variance(w: _Writer, step: Step, x: Sequence[str]) -> str:
    if step.attributes.get("correction", 1) != 0:
        raise Cannot("no unbiased variance")
    axes = w.constant(list(dims(step, len(_shape(w.structure, step.operands[0])))))
    centred = w.add("Sub", [x[0], w.add("ReduceMean", [x[0], axes], keepdims=1)])
    return w.add("ReduceMean", [w.add("Mul", [centred, centred]), axes],
                 keepdims=int(bool(step.attributes.get("keepdim", False))))


_UNARY = {"exp.default": "Exp", "relu.default": "Relu", "sigmoid.default": "Sigmoid", "tanh.default": "Tanh",
          "sqrt.default": "Sqrt", "neg.default": "Neg", "erf.default": "Erf", "reciprocal.default": "Reciprocal",
          "log.default": "Log", "abs.default": "Abs", "hardswish.default": "HardSwish", "mish.default": "Mish",
          "softplus.default": "Softplus", "clone.default": "Identity"}
_BINARY = {f"{aten}.{kind}": onnx for aten, onnx in {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"}.items()
           for kind in ("Tensor", "Scalar")} | {
    "pow.Tensor_Scalar": "Pow", "maximum.default": "Max", "minimum.default": "Min", "bmm.default": "MatMul",
    "mm.default": "MatMul", "matmul.default": "MatMul"}
_REDUCE = {"sum.dim_IntList": "ReduceSum", "mean.dim": "ReduceMean", "amax.default": "ReduceMax",
           "amin.default": "ReduceMin"}
_SPECIAL: Mapping[str, Callable[[_Writer, Step, Sequence[str]], str]] = {
    "convolution.default": _convolution, "clamp.default": _clamp, "hardtanh.default": _clamp,
    "clamp_min.default": _one_sided("min"), "clamp_max.default": _one_sided("max"),
    "max_pool2d.default": _pool, "avg_pool2d.default": _pool, "max_pool2d_with_indices.default": _pool,
    "reflection_pad2d.default": _pad("reflect"), "constant_pad_nd.default": _pad("constant"),
    "replication_pad2d.default": _pad("edge"),
    "upsample_nearest2d.default": _nearest, "upsample_nearest2d.vec": _nearest,
    "upsample_bilinear2d.default": _bilinear, "upsample_bilinear2d.vec": _bilinear,
    "native_layer_norm.default": _layer_norm, "native_group_norm.default": _group_norm,
    "var.correction": _variance,
    "_softmax.default": lambda w, s, x: w.add("Softmax", x, axis=int(positional(s)[1])),
    "rsqrt.default": lambda w, s, x: w.add("Reciprocal", [w.add("Sqrt", x)]),
    "square.default": lambda w, s, x: w.add("Mul", [x[0], x[0]]),
    "silu.default": lambda w, s, x: w.add("Mul", [x[0], w.add("Sigmoid", x)]),
    "gelu.default": lambda w, s, x: w.add("Gelu", x, approximate=str(argument(s, 1, "approximate", "none"))),
    "leaky_relu.default": lambda w, s, x: w.add("LeakyRelu", x, alpha=float(argument(s, 1, "negative_slope", 0.01))),
    "addmm.default": lambda w, s, x: w.add("Gemm", [x[1], x[2], x[0]]),
    "cat.default": lambda w, s, x: w.add("Concat", x, axis=int(argument(s, 1, "dim", 0))),
    "where.self": lambda w, s, x: w.add("Where", [w.scalar_or(v, x, s.value.dtype) for v in positional(s)]),
}


@functools.cache
def _share_memory() -> None:
    """Let all sessions allocate from one arena: a program of fifty sessions with an arena each touches fifty times the
    memory, and takes a quarter more time."""
    import onnxruntime

    memory = onnxruntime.OrtMemoryInfo("Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0,
                                       onnxruntime.OrtMemType.DEFAULT)
    onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg({}))


@functools.cache
def _options(threads: int) -> Any:
    import onnxruntime

    _share_memory()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


class _Session:
    """A session whose inputs and outputs are torch tensors, bound by address."""

    def __init__(self, model: bytes, structure: Structure, operands: Operands) -> None:
        import onnx
        import onnxruntime

        made = onnx.load_from_string(model)
        fixed = {f"in{i}": t for i, t in operands.fixed.items()}
        left = [x for x in made.graph.input if x.name not in fixed]
        for name, tensor in fixed.items():
            if any(x.name == name for x in made.graph.input):
                made.graph.initializer.append(onnx.numpy_helper.from_array(tensor.contiguous().numpy(), name))
        del made.graph.input[:]
        made.graph.input.extend(left)
        self.session = onnxruntime.InferenceSession(made.SerializeToString(), _options(torch.get_num_threads()),
                                                    providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()
        self.inputs = [(f"in{i}", np.dtype(v.dtype), list(v.shape)) for i, v in enumerate(structure.inputs)
                       if v.role == "data"]
        self.outputs = [(f"out{i}", np.dtype(structure.steps[o].value.dtype), list(structure.steps[o].value.shape),
                         dtype_of(structure.steps[o].value.dtype)) for i, o in enumerate(structure.outputs)]

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        binding = self.binding
        for (name, kind, shape), tensor in zip(self.inputs, tensors, strict=True):
            binding.bind_input(name, "cpu", 0, kind, shape, tensor.data_ptr())
        made = []
        for name, kind, shape, dtype in self.outputs:
            out = torch.empty(shape, dtype=dtype)
            binding.bind_output(name, "cpu", 0, kind, shape, out.data_ptr())
            made.append(out)
        self.session.run_with_iobinding(binding)
        return tuple(made)


def fragment(structure: Structure, payload: str | bytes | None, operands: Operands) -> Fragment:
    """One call of the session.

    Raises:
        Cannot: ONNX Runtime is not installed or refuses the model.
    """
    assert isinstance(payload, bytes)
    why = lacking()
    if why is not None:
        raise Cannot(why)
    try:
        session = _Session(payload, structure, operands)
    except Exception as error:  # the session raises classes of its own binding
        raise Cannot(f"ONNX Runtime: {first_line(error)}") from error
    data = ", ".join(f"{{{i}}}" for i, v in enumerate(structure.inputs) if v.role == "data")
    outputs = ", ".join(f"{{out{i}}}" for i in range(len(structure.outputs)))
    return Fragment((f"{outputs}, = {{p}}session({data})",), {"session": session})
