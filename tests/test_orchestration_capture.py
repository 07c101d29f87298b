"""Capture of ``orchestration``: graphs compute what the programs do, rewrites too, and faults are told."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from executors.orchestration import capture as front  # noqa: E402
from executors.orchestration import rewrites  # noqa: E402
from executors.orchestration.capture import SHIPPED, capture, captured_model, named  # noqa: E402
from executors.orchestration.capture_passes import shortest  # noqa: E402
from executors.orchestration.evaluate import computed, free_tensors, outputs  # noqa: E402
from executors.orchestration.models import MODELS, build  # noqa: E402
from planners.orchestration.graph import Operand, Primitive, PrimitiveGraph, load, validate  # noqa: E402
from planners.orchestration.load import graph_name, shipped  # noqa: E402
from planners.orchestration.views import Layout, View, contiguous_strides, viewed  # noqa: E402
from workbench.errors import SpecError  # noqa: E402

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")

BLOCKS = [name for name, spec in MODELS.items() if spec.block_of]
LARGE = ("gpt2", "yolov4")


def listed(made: Any) -> list[torch.Tensor]:
    return [made] if isinstance(made, torch.Tensor) else list(made)


def worst(got: Any, right: Any) -> float:
    """Largest deviation over the largest element (1 at least)."""
    found = [float((a.double() - b).abs().max()) / max(1.0, float(b.abs().max()))
             for a, b in zip(listed(got), listed(right), strict=True)]
    return max(found)


def agrees(program: Callable[..., Any], *inputs: torch.Tensor, rules: tuple[str, ...] = ()) -> PrimitiveGraph:
    """Capture and compare with the program itself; the graph."""
    found = capture(program, inputs, rules=rules)
    validate(found.graph)
    wanted = listed(program(*inputs))
    for got, right in zip(outputs(found.graph, inputs, found.weights), wanted, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)
    return found.graph


def ops(graph: PrimitiveGraph) -> list[str]:
    return [p.op.split(".")[1] for p in graph.primitives if p.rewrite is None]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", [n if n not in LARGE else pytest.param(n, marks=pytest.mark.slow) for n in MODELS])
def test_graphs_compute_what_models_do(name: str, batch: int) -> None:
    module, inputs = build(name, batch=batch, resolution=MODELS[name].small_resolution, seed=3)
    found = capture(module, inputs, name=name, rules=())
    scales = (1.0, 5.0, 100.0)  # five times: logits of about a hundred
    eager = [module(*[x * scale for x in inputs]) for scale in scales]
    double = module.double()
    for scale, theirs in zip(scales, eager, strict=True):
        scaled = [x * scale for x in inputs]
        right = double(*[x.double() for x in scaled])
        got = outputs(found.graph, scaled, found.weights)
        assert all(bool(x.isfinite().all()) for x in got)
        # a hundred times: logits of ten thousand, whose own rounding eager's softmax shows as well
        assert worst(got, right) < (1e-4 if scale < 100 else max(1e-4, 4 * worst(theirs, right)))


@pytest.mark.parametrize(("name", "count"), [("segformer-attention", 8), ("efficientvit-attention-sum", 8),
                                             ("candy-norm", 11), ("segformer-decode", 8)])
def test_blocks_have_as_many_primitives_as_they_should(name: str, count: int) -> None:
    graph = captured_model(name, resolution=MODELS[name].small_resolution, rules=()).graph
    assert len(graph.primitives) == count
    assert not any(p.kind == "opaque" for p in graph.primitives)


@pytest.mark.parametrize("name", [*BLOCKS, "segformer-b0"])
def test_every_alternative_makes_the_same_tensor(name: str) -> None:
    """In double precision, and in single precision on large inputs."""
    module, inputs = build(name, resolution=MODELS[name].small_resolution, seed=4)
    found = capture(module, inputs, name=name)
    graph = found.graph
    own = {p.output for p in graph.primitives if p.rewrite is None}
    ends = [p for p in graph.primitives if p.rewrite is not None and p.output in own]
    for dtype, scale, limit in ((torch.float64, 1.0, 1e-8), (torch.float32, 5.0, 1e-4)):
        free = free_tensors(graph, [x * scale for x in inputs], found.weights, dtype=dtype)
        base = computed(graph, free, own, dtype=dtype)
        for p in ends:
            without = {k: v for k, v in base.items() if k != p.output}
            got = computed(graph, without, [p.output], dtype=dtype, chosen={p.output: p.name})[p.output]
            assert worst(got, base[p.output].double()) < limit, p.name


def test_rules_are_taken_where_they_should_be() -> None:
    found = {name: {p.rewrite for p in captured_model(name, resolution=MODELS[name].small_resolution).graph.primitives}
             for name in ("segformer-attention", "efficientvit-attention-sum", "candy-norm", "yolov4-csp")}
    assert {"padded-product", "divide-after-product", "sum-as-product"} <= found["segformer-attention"]
    assert "merged-products" in found["efficientvit-attention-sum"]
    assert "unary-and-move" in found["candy-norm"]
    assert {"fused-bias", "mish-by-one-exponential"} <= found["yolov4-csp"]


def test_merged_weights_sliced_concats_and_pushed_permutations() -> None:
    a, b = random(8, 6, seed=1), random(8, 10, seed=2)
    found = capture(lambda x: (torch.mm(x, a), torch.mm(x, b)), [random(4, 8)])
    assert any(name.endswith("merged-products.weight") for name in found.weights)
    cat = capture(lambda x, y: torch.cat([x, y], 1)[:, 4:7] * 2, [random(3, 4), random(3, 5)])
    assert [p.inputs[0].tensor for p in cat.graph.primitives if p.rewrite == "part-of-concat"] == ["input1"]
    turned = capture(lambda x, y: torch.mm(torch.relu((x + 1).t()), y), [random(5, 4), random(5, 3)])
    assert any(p.rewrite == "unary-before-view" for p in turned.graph.primitives)


def test_a_rewrite_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(site: rewrites.Site, p: Any, rule: str) -> Any:
        if p.op == "aten.relu.default":
            yield (p,), rewrites.Draft(site, p, rule).end("aten.abs.default", "elementwise", p.inputs)

    monkeypatch.setattr(rewrites, "RULES", {"wrong": wrong})
    found = capture(lambda x: torch.relu(x) + 1, [random(4, 4)], rules=("wrong",))
    assert len(found.graph.primitives) == 2
    with pytest.raises(SpecError, match="no rewrite is called"):
        capture(torch.relu, [random(2)], rules=("padded-produkt",))


def test_padding_with_a_number_does_not_commute_with_what_changes_it() -> None:
    def rules(value: float, f: Callable[..., Any]) -> set[Any]:
        graph = capture(lambda x: F.pad(f(x), (1, 1, 1, 1), value=value), [random(1, 2, 4, 4)]).graph
        return {p.rewrite for p in graph.primitives}

    assert "unary-and-move" in rules(0.0, torch.relu)
    assert "unary-and-move" not in rules(-1.0, torch.relu)
    assert "unary-and-move" not in rules(0.0, torch.sigmoid)


def test_softmax_is_safe_unless_asked_otherwise() -> None:
    x = random(2, 8) * 200
    for program in (lambda x: torch.softmax(x, -1), lambda x: torch.log_softmax(x, 1)):
        agrees(program, x)
    raw = capture(lambda x: torch.softmax(x, -1), [x], safe=False)
    assert "amax" not in ops(raw.graph)
    assert not bool(outputs(raw.graph, [x], raw.weights)[0].isfinite().all())
    default = capture(lambda x: torch.softmax(x, -1), [x]).graph
    assert not any((p.rewrite or "").startswith("unsafe-") for p in default.primitives)
    asked = capture(lambda x: torch.softmax(x, -1), [x], rules=("unsafe-softmax",)).graph
    assert sum(p.rewrite == "unsafe-softmax" for p in asked.primitives) == 3


@pytest.mark.parametrize("causal", [False, True])
def test_library_attention_is_taken_apart(causal: bool) -> None:
    q, k, v = (random(2, 3, 5, 4, seed=i) for i in range(3))
    graph = agrees(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal), q, k, v)
    assert not any(p.kind == "opaque" for p in graph.primitives)


def test_masked_rows_and_attention_modules() -> None:
    q = random(1, 2, 4, 4)
    mask = torch.tensor([[True, False, True, False]] * 3 + [[False] * 4])
    agrees(lambda q, m: F.scaled_dot_product_attention(q, q, q, attn_mask=m), q, mask)
    agrees(nn.MultiheadAttention(8, 2, batch_first=True).eval(), random(2, 5, 8), random(2, 5, 8), random(2, 5, 8))


@pytest.mark.parametrize(("program", "shape"), [
    (nn.GroupNorm(2, 6), (2, 6, 4, 4)), (nn.GroupNorm(6, 6), (1, 6, 4, 4)), (nn.LayerNorm((4, 3)), (2, 5, 4, 3)),
    (nn.InstanceNorm2d(3), (2, 3, 4, 4)), (nn.InstanceNorm2d(3, track_running_stats=True), (2, 3, 4, 4)),
    (nn.BatchNorm1d(4), (3, 4)), (lambda x: x.var(1), (3, 4)), (lambda x: x.std((0, 2), correction=0), (3, 4, 2)),
    (lambda x: torch.var_mean(x, 1, keepdim=True), (3, 4)), (nn.Sequential(nn.Conv1d(4, 6, 3), nn.GELU()), (2, 4, 9)),
    (nn.ConvTranspose2d(4, 3, 3, stride=2), (1, 4, 5, 5)), (nn.Linear(4, 3), (2, 5, 4)), (nn.Hardswish(), (3,)),
    (lambda x: x.chunk(3, 1)[1] + x.split([2, 2, 2], 1)[2], (2, 6)), (lambda x: x.unbind(1)[2].exp(), (2, 3)),
    (lambda x: torch.stack([x, x * 2], 1), (2, 3)), (lambda x: torch.einsum("ij,kj->ik", x, x), (3, 4)),
    (lambda x: x.masked_fill(x > 0, -math.inf).softmax(-1).nan_to_num(), (3, 4)), (lambda x: x[..., ::2, 1:], (4, 6)),
    (lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear") + 1, (1, 2, 3, 3)),
    (lambda x: F.avg_pool2d(F.max_pool2d(x, 2), 2), (1, 2, 8, 8)), (lambda x: x.permute(1, 0).reshape(2, 6), (4, 3)),
    (lambda x: x.to(torch.float64) * 2, (3,)), (lambda x: torch.arange(4.0) + x, (4,)),
    (lambda x: x.expand(3, 4).contiguous() + x, (4,)), (lambda x: x.t(), (2, 3)), (lambda x: x, (2, 3))])
def test_operators(program: Any, shape: tuple[int, ...]) -> None:
    if isinstance(program, nn.Module):
        for value in program.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=torch.Generator().manual_seed(1)) + 0.1)
        program = program.eval()
    agrees(program, random(*shape))


def test_batch_norm_disappears_into_the_convolution() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3, bias=True), nn.BatchNorm2d(4), nn.ReLU()).eval()
    module[1].running_mean.copy_(random(4))
    module[1].running_var.copy_(random(4).abs() + 0.1)
    assert ops(agrees(module, random(1, 3, 6, 6))) == ["convolution", "add", "relu"]


def test_unknown_operators_are_opaque_and_still_run() -> None:
    graph = agrees(lambda x: torch.topk(torch.cumsum(x, 1).relu(), 2, dim=1)[0] * 2, random(3, 5))
    kinds = {p.op.split(".")[1]: p.kind for p in graph.primitives}
    assert kinds == {"cumsum": "opaque", "relu": "elementwise", "topk": "opaque", "mul": "elementwise"}


def test_in_place_inside_is_fine_but_not_on_inputs() -> None:
    def inside(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        y.relu_()
        y[:, 0] = 3.0
        return y * x

    agrees(inside, random(3, 4))
    with pytest.raises(SpecError, match="writes to one of its inputs"):
        capture(lambda x: x.add_(1) * 2, [random(3)])


def test_faults_are_told() -> None:
    with pytest.raises(SpecError, match="depends on values"):
        capture(lambda x: x * 2 if bool(x.sum() > 0) else x, [random(3)])
    with pytest.raises(SpecError, match="depends on values"):
        capture(lambda x: x[x > 0], [random(3)])
    with pytest.raises(SpecError, match="no tensor"):
        capture(lambda x: "text", [random(3)])
    with pytest.raises(SpecError, match="training mode"):
        capture(nn.BatchNorm1d(3), [random(2, 3)])
    with pytest.raises(SpecError, match="cannot be traced"):
        capture(lambda x: x @ x, [random(2, 3)])
    for draws in (lambda x: x + torch.rand_like(x), lambda x: x + torch.randn(3),
                  lambda x: torch.nn.functional.dropout(x, training=True)):
        with pytest.raises(SpecError, match="draws random numbers"):
            capture(draws, [random(3)])
    outside = torch.zeros(3)
    with pytest.raises(SpecError, match="closes over"):
        capture(lambda x: x + outside.add_(1), [random(3)])


def test_evaluation_tells_what_is_missing_and_circles() -> None:
    found = capture(nn.Linear(3, 2).eval(), [random(4, 3)], rules=())
    with pytest.raises(SpecError, match="nothing given"):
        outputs(found.graph, [random(4, 3)], {})
    with pytest.raises(SpecError, match="2 inputs, the program takes 1"):
        outputs(found.graph, [random(4, 3)] * 2, found.weights)
    turned = [Primitive(name=f"{a}.from.{b}", op="aten.neg.default", kind="elementwise", output=a, rewrite="negative",
                        inputs=(Operand(tensor=b),)) for a, b in (("abs_1", "neg"), ("neg", "abs_1"))]
    graph = capture(lambda x: x.abs().neg(), [random(3)]).graph
    graph = dataclasses.replace(graph, primitives=(*graph.primitives, *turned))
    with pytest.raises(SpecError, match="out of itself"):
        outputs(graph, [random(3)], {}, chosen={p.output: p.name for p in turned})


def test_programs_by_name() -> None:
    module, inputs = named(f"{__name__}:factory")
    agrees(module, *inputs)
    for text, said in (("nothing", "names no program"), ("no.such.module:f", "importing"),
                       ("math:cosine", "has no 'cosine'"), ("math:sqrt", "failed")):
        with pytest.raises(SpecError, match=said):
            named(text)


def factory() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return nn.Linear(3, 2).eval(), (random(4, 3),)


def test_saved_and_read_again(tmp_path: Path) -> None:
    found = captured_model("candy-norm", resolution=16)
    again = front.load_captured(front.save_captured(found, tmp_path / "a.json"))
    assert again.graph.digest() == found.graph.digest()
    x = [random(1, 64, 16, 16)]
    assert torch.equal(outputs(found.graph, x, found.weights)[0], outputs(again.graph, x, again.weights)[0])
    (tmp_path / "a.pt").unlink()
    with pytest.raises(SpecError, match="no weights beside"):
        front.load_captured(tmp_path / "a.json")


_QUICK = ("candy-norm", "efficientvit-attention", "segformer-decode", "yolox-csp", "segformer-b0")


@pytest.mark.parametrize("name", [n if n in _QUICK else pytest.param(n, marks=pytest.mark.slow) for n in SHIPPED])
def test_shipped_graphs_are_what_capture_gives(name: str) -> None:
    path = shipped()[graph_name(name, batch=1, resolution=SHIPPED[name])]
    assert load(path).digest() == captured_model(name, resolution=SHIPPED[name]).graph.digest(), \
        f"python -m executors.orchestration.capture {name}"


def test_shipped_graphs_are_small() -> None:
    assert sum(path.stat().st_size for path in shipped().values()) < 1.5e6


def test_the_command_writes_graphs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main(["candy-norm", "--resolution", "16", "--out", str(tmp_path)]) == 0
    assert "11 primitives" in capsys.readouterr().err
    assert load(tmp_path / "candy-norm-b1-r16.json").name == "candy-norm"
    assert front.main([f"{__name__}:factory", "--out", str(tmp_path)]) == 0
    again, (module, inputs) = front.load_captured(tmp_path / "factory.json"), factory()
    assert again.graph.provenance["program"].endswith(":factory")
    assert [tuple(x.shape) for x in outputs(again.graph, inputs, again.weights)] == [tuple(module(*inputs).shape)]
    assert front.main(["math:sqrt", "--out", str(tmp_path)]) == 2
    assert "sqrt() failed" in capsys.readouterr().err


def test_shortest_views_keep_the_layout() -> None:
    generator = torch.Generator().manual_seed(0)
    stored = Layout((2, 3, 4, 5), contiguous_strides((2, 3, 4, 5)), 0)
    for _ in range(200):
        views: list[View] = []
        for _ in range(int(torch.randint(1, 5, (), generator=generator))):
            shape = viewed(stored, views).shape
            order = tuple(torch.randperm(len(shape), generator=generator).tolist())
            choices = [View(op="aten.permute.default", arguments=(order,)),
                       View(op="aten.view.default", arguments=((1, *shape),)),
                       View(op="aten.view.default", arguments=((-1,),)),
                       View(op="aten.slice.Tensor", arguments=(0, 0, 2))]
            view = choices[int(torch.randint(4, (), generator=generator))]
            try:
                viewed(stored, (*views, view))
            except SpecError:
                continue
            views.append(view)
        seen, short = viewed(stored, views), shortest(stored, views)
        again = viewed(stored, short)
        assert (seen.shape, seen.offset) == (again.shape, again.offset)
        assert all(a == b for n, a, b in zip(seen.shape, seen.strides, again.strides, strict=True) if n != 1)
        assert len(short) <= max(len(views), 0)
