"""Primitive graphs and the kernels grown in them: contract, views, names, structures, enumeration."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planners.orchestration.blp import Search, choose
from planners.orchestration.candidates import candidate, structure
from planners.orchestration.enumeration import enumerate_kernels
from planners.orchestration.graph import (
    GraphIndex,
    Operand,
    Primitive,
    Tensor,
    View,
    load,
    save,
    validate,
)
from planners.orchestration.load import offered, program_graph, shipped
from planners.orchestration.masks import bits
from planners.orchestration.problem import Limits, Problem, Program
from planners.orchestration.views import Layout, contiguous_strides, viewed
from tests.oracles_orchestration import (
    brute_force_cones,
    convex_by_definition,
    down_sets,
    options_of,
    shortest,
    subsets,
    targets_of,
)
from tests.orchestration_graphs import (
    FIGURE_4,
    FIGURE_4_LINEAR,
    FREE,
    PAPER,
    dag,
    fork_join,
    random_dag,
    with_alternatives,
)
from workbench.costs import Cost, open_costs
from workbench.errors import MissingProfile, SpecError, TraceError
from workbench.spec import dump, parse

# --- the graph itself -----------------------------------------------------------------------------------------------


def test_graphs_survive_the_trip_to_disk_and_faults_are_all_named(tmp_path: Path) -> None:
    graph = with_alternatives()
    path = save(graph, f"{tmp_path}/graph.json")
    assert load(path) == graph
    assert load(path).digest() == graph.digest()
    broken = replace(graph, outputs=(Operand(tensor="nobody"),), inputs=("x", "y"),
                     primitives=(*graph.primitives, graph.primitives[0]))
    with pytest.raises(SpecError) as caught:
        validate(broken)
    assert "used 2 times" in str(caught.value)
    assert "no tensor 'nobody'" in str(caught.value)
    late = replace(graph, primitives=graph.primitives[::-1])
    with pytest.raises(SpecError, match="before the captured program makes it"):
        validate(late)
    with pytest.raises(SpecError, match="no such file"):
        load(f"{tmp_path}/absent.json")


def test_views_follow_strides_or_say_that_none_fit() -> None:
    square = Layout((4, 6), contiguous_strides((4, 6)), 0)
    turned = viewed(square, [View(op="aten.permute.default", arguments=([1, 0],))])
    assert turned == Layout((6, 4), (1, 6), 0)
    assert viewed(square, [View(op="aten.view.default", arguments=([2, 2, -1],))]).strides == (12, 6, 1)
    assert viewed(square, [View(op="aten.slice.Tensor", arguments=(1, 1, 2**63 - 1, 2))]) == Layout((4, 3), (6, 2), 1)
    assert viewed(square, [View(op="aten.unsqueeze.default", arguments=(0,)),
                           View(op="aten.expand.default", arguments=([5, -1, -1],))]).strides == (0, 6, 1)
    with pytest.raises(SpecError, match="no strides express it"):
        viewed(turned, [View(op="aten.view.default", arguments=([24],))])
    with pytest.raises(SpecError, match="did you mean"):
        viewed(square, [View(op="aten.permute", arguments=([1, 0],))])


def test_a_view_is_the_same_value_whether_it_was_captured_or_read_from_a_file() -> None:
    captured = View(op="aten.slice.Tensor", arguments=((1, (2, 3)), 0))
    read = parse(View, json.loads(json.dumps(dump(captured))))
    assert read == captured
    assert hash(read) == hash(captured)


def test_a_kernel_reads_its_inputs_in_the_order_of_the_walk() -> None:
    index = GraphIndex(dag([[], [], [1, 0]]))
    made = candidate(index, [2, 0], ["t2"])
    assert made.inputs == ("t1", "x")
    assert structure(index, made).steps[-1].operands[0].origin == "in"


# --- graphs and costs by name -----------------------------------------------------------------------------------------


def test_shipped_graphs_keep_the_contract_and_are_found_by_name() -> None:
    assert shipped()
    for name, path in shipped().items():
        graph = load(path)
        model, batch, resolution = re.fullmatch(r"(.+)-b(\d+)-r(\d+)", name).groups()  # type: ignore[union-attr]
        program = Program(captured=model, batch=int(batch), resolution=int(resolution))
        assert program_graph(Problem(program=program, limits=Limits(unsafe=True))).digest() == graph.digest()
        assert path.stat().st_size < 1_500_000
    with pytest.raises(SpecError, match=r"no graphs of 'instance-norn'.*\n.*\n.*did you mean 'instance-norm'"):
        program_graph(Problem(program=Program(captured="instance-norn", batch=1)))
    with pytest.raises(SpecError, match="exactly one place"):
        Program(captured="a", file="b")


def test_a_rewrite_that_is_not_offered_takes_what_only_it_could_use_along() -> None:
    graph = with_alternatives()
    extra = replace(
        graph, tensors=(*graph.tensors, Tensor(name="c", shape=(4, 4))),
        primitives=(*graph.primitives, Primitive(name="c-from-b", op="test.c.default", kind="elementwise", output="c",
                                                 inputs=(Operand(tensor="b"),), rewrite="detour"),
                    Primitive(name="y-from-c", op="test.y.default", kind="elementwise", output="y",
                              inputs=(Operand(tensor="c"),), rewrite="swap")))
    validate(extra)
    less = offered(extra, Limits(without=("detour",)))
    assert {p.name for p in extra.primitives} - {p.name for p in less.primitives} == {"c-from-b", "y-from-c"}
    assert "c" not in {t.name for t in less.tensors}
    with pytest.raises(SpecError, match="did you mean 'detour'"):
        offered(extra, Limits(without=("detuor",)))


def test_a_store_of_kernel_times_is_read_to_its_last_whole_line(tmp_path: Path) -> None:
    file = tmp_path / "cpu.jsonl"
    rows: list[dict[str, object]] = [
        {"format": 1, "conditions": {"device": "cpu", "threads": 1, "processor": "a CPU", "date": "2026-01-02"}},
        {"kernel": "k", "backend": "eager", "seconds": 2e-6, "runs": 5},
        {"kernel": "k", "backend": "eager", "seconds": 1e-6},
        {"kernel": "k", "backend": "inductor", "seconds": None, "why": "no such operation"},
        {"boundary": {"per_kernel_s": 1e-7, "per_byte_s": 1e-12}}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kernel": "torn')
    costs = open_costs({"source": "kernels", "store": str(tmp_path), "threads": 1})
    assert costs.cost("kernel", structure="k", backend="eager") == Cost(1e-6, "measured")
    assert math.isinf(costs.cost("kernel", structure="k", backend="inductor").seconds)
    assert costs.cost("kernel_boundary", bytes=10**6).seconds == pytest.approx(1.1e-6)
    assert costs.provenance()["kernel"].date == "2026-01-02"
    with pytest.raises(MissingProfile):
        costs.cost("kernel", structure="torn", backend="eager")
    with pytest.raises(SpecError, match="0 stores"):
        open_costs({"source": "kernels", "store": str(tmp_path), "threads": 2})
    with pytest.raises(SpecError, match="either table or store"):
        open_costs({"source": "kernels"})
    file.write_text(json.dumps(rows[1]) + "\n")
    with pytest.raises(TraceError, match="not a store"):
        open_costs({"source": "kernels", "store": str(file)})


# --- enumeration ----------------------------------------------------------------------------------------------------


def test_figure_4_has_the_published_kernels() -> None:
    """21 kernels (paper, figure 4), and its optimum with and without redundancy, proven both ways."""
    kernels = enumerate_kernels(dag(FIGURE_4, linear=FIGURE_4_LINEAR), PAPER)
    assert len(kernels.grown) == kernels.kinds == 21
    options, targets = options_of(kernels, lambda g: 1.0), targets_of(kernels)
    best = choose(options, targets, Search())
    once = choose(options, targets, Search(once=kernels.needed))
    assert best.proven
    assert once.proven
    assert best.seconds == shortest(options, targets)
    assert best.seconds < once.seconds, "redundancy lowers the optimum under unit costs"


def test_chains_and_forks_have_the_published_counts() -> None:
    def counts(preds: list[list[int]], space: str) -> int:
        return len(enumerate_kernels(dag(preds), replace(FREE, space=space)).grown)  # type: ignore[arg-type]

    for n in (1, 2, 5, 9):
        chain: list[list[int]] = [[], *([i] for i in range(n - 1))]
        assert counts(chain, "convex") == counts(chain, "cone") == n * (n + 1) // 2
    assert [counts(fork_join(w), "convex") for w in (2, 3, 4, 5)] == [10, 16, 26, 44]
    assert [counts(fork_join(w), "cone") for w in (2, 3, 4, 5)] == [12, 22, 40, 74]


@pytest.mark.parametrize("convex", [True, False])
def test_growing_backwards_finds_exactly_the_kernels_of_brute_force(convex: bool) -> None:
    rng = np.random.default_rng(11)
    for _ in range(25):
        preds = random_dag(rng, least=4, most=8)
        linear = {i for i in range(len(preds)) if rng.random() < 0.25}
        limits = replace(FREE, space="convex" if convex else "cone", most_linear=0)
        kernels = enumerate_kernels(dag(preds, linear=linear), limits)
        allowed = [s for s in subsets(len(preds)) if len(s) == 1 or not s & linear]
        live = brute_force_cones(preds, allowed, convex=convex)
        assert {(frozenset(bits(g.members)), g.makes[0]) for g in kernels.grown} == live


def test_convex_sets_are_differences_of_execution_states() -> None:
    """Theorem 1 of the paper, by brute force over all subsets."""
    rng = np.random.default_rng(5)
    for _ in range(6):
        preds = random_dag(rng, least=5, most=8)
        states = down_sets(preds)
        differences = {b - a for a in states for b in states if a <= b}
        assert {s for s in subsets(len(preds)) if convex_by_definition(preds, s)} == differences


def test_equal_structures_have_one_key_and_different_ones_do_not() -> None:
    rng = np.random.default_rng(2)
    for distinct in (True, False):
        for _ in range(10):
            kernels = enumerate_kernels(dag(random_dag(rng), distinct=distinct), FREE)
            digests: dict[int, set[str]] = {}
            for g in kernels.grown:
                digests.setdefault(g.kind, set()).add(structure(kernels.index, kernels.candidate(g)).digest())
            assert all(found == {kernels.digest(kind)} for kind, found in digests.items())
            assert len({next(iter(found)) for found in digests.values()}) == len(digests)


def test_a_cap_on_kernels_is_told() -> None:
    kernels = enumerate_kernels(dag(fork_join(6)), replace(FREE, per_output=5))
    assert kernels.capped == 1
    assert {1 << p for p in range(8)} <= {g.members for g in kernels.grown}, "single primitives always"


def test_the_whole_program_and_its_components_are_candidates() -> None:
    preds = [[], [0], [0], [1, 2], [3], [4], [4], [5, 6]]
    kernels = enumerate_kernels(dag(preds, linear=(3,), outputs=(7, 5)), Limits(largest=2, most_linear=0))
    assert kernels.program is not None
    assert kernels.program.members == (1 << 8) - 1
    assert set(kernels.program.makes) == {5, 7}
    assert any(set(bits(g.members)) == {0, 1, 2, 3} for g in kernels.grown) or any(
        set(bits(g.members)) == {1, 2, 3} for g in kernels.grown)
