"""The serving simulator: skipping ahead is exact, schedules match hand-worked ones, metrics match their definitions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import Infeasible, SpecError, TraceError
from workbench.serving import (
    ReplicaSpec,
    Requests,
    Served,
    Slo,
    TokenGaps,
    prefix_parents,
    simulate_fleet,
    turn_parents,
)
from workbench.serving.records import pack_stretch, stretches, sums
from workbench.serving.router import Deficit
from workbench.stepcosts import TICKS_PER_S, Chunk, Ramp

MS = TICKS_PER_S // 1000


class Toy:
    """Iteration times in closed form: a ramp with knees in the mean context, prompts by tokens and history."""

    def __init__(self, *, base: int = 10 * MS, request: int = 0, token: int = 0, prompt: int = 0, history: int = 0,
                 knees: Sequence[tuple[int, int, int]] = ()) -> None:
        self.base, self.request, self.token, self.prompt, self.history = base, request, token, prompt, history
        self.knees = knees  # (mean context, jump, slope)

    def decode(self, sequences: int) -> Ramp:
        start, base, slope = [0], [self.base + self.request * sequences], [self.token]
        for context, jump, steep in self.knees:
            start.append(context * sequences)
            base.append(max(1, base[-1] + slope[-1] * (start[-1] - start[-2]) + jump))
            slope.append(steep)
        return Ramp(tuple(start), tuple(base), tuple(slope))

    def mixed(self, sequences: int, context_tokens: int, chunks: Sequence[Chunk]) -> int:
        decoding = self.decode(sequences)(context_tokens) if sequences else self.base
        return decoding + sum(self.prompt * c.tokens + self.history * c.history for c in chunks)

    def sources(self) -> dict[Any, float]:
        return {"analytic": 1.0}


def replica(model: Toy | None = None, **limits: Any) -> ReplicaSpec:
    chosen = {"kv_blocks": 10_000, "scheduling": "sync", **limits}
    return ReplicaSpec(step_model=model or Toy(), **chosen)


def value(served: Served, name: str, slo: Slo | None = None) -> float:
    return next(m.value for m in served.metrics(slo=slo) if m.name == name)


# -- skipping ahead is exact -------------------------------------------------------------------------------------------


@st.composite
def workloads(draw: st.DrawFn) -> tuple[Requests, list[ReplicaSpec], str]:
    """Small fleets under pressure: few blocks and seats, shared prefixes, every scheduling and caching mode."""
    count = draw(st.integers(1, 20))
    lengths = st.lists(st.integers(1, 40), min_size=count, max_size=count)
    prompt, output = draw(lengths), draw(lengths)
    span = draw(st.sampled_from([0, 2_000, 60_000]))
    arrivals = sorted(draw(st.lists(st.integers(0, span), min_size=count, max_size=count)))
    parents, shared = [-1], [0]
    for i in range(1, count):
        parent = draw(st.integers(-1, i - 1))
        most = min(prompt[i], prompt[parent]) if parent >= 0 else 0
        parents.append(parent)
        shared.append(draw(st.one_of(st.just(most), st.integers(0, most))))
    block = draw(st.sampled_from([1, 2, 4, 16]))
    least = max(-(-(p + o - 1) // block) for p, o in zip(prompt, output, strict=True))
    seats = draw(st.integers(1, 8))
    knees = tuple((10 * (i + 1), draw(st.integers(0, 50)), draw(st.integers(-1, 9))) for i in range(2))
    model = Toy(base=draw(st.integers(500, 5_000)), request=draw(st.integers(0, 50)), token=draw(st.integers(0, 9)),
                prompt=draw(st.integers(0, 200)), history=draw(st.integers(0, 3)), knees=(*knees, (40, 0, 1)))
    fleet = [ReplicaSpec(step_model=model, kv_blocks=least + draw(st.integers(0, 2 * least)), block_size=block,
                         max_sequences=seats, token_budget=seats + draw(st.integers(0, 40)), group=str(i % 2),
                         scheduling=draw(st.sampled_from(["async", "sync"])),
                         caching=draw(st.sampled_from(["off", "prefix"]))) for i in range(draw(st.integers(1, 3)))]
    requests = Requests.of(np.array(arrivals) / 1e12, prompt, output, prefix_of=parents, shared_tokens=shared)
    return requests, fleet, draw(st.sampled_from(["round-robin", "least-outstanding", "deficit"]))


@settings(max_examples=250, deadline=None)
@given(workloads())
def test_skipping_ahead_gives_the_integers_of_stepping(case: tuple[Requests, list[ReplicaSpec], str]) -> None:
    """Every time, preemption, reused token, per-replica sum and token gap equals that of the slow engine."""
    requests, fleet, router = case
    shares = {"0": [2.0], "1": [1.0]} if len(fleet) > 1 else {"0": [1.0]}
    fast, slow = (simulate_fleet(requests, fleet, router=router, shares=shares, step=step)  # type: ignore[arg-type]
                  for step in ("coalesced", "every iteration"))
    for name in ("scheduled_ps", "first_token_ps", "finish_ps", "replica", "preemptions", "reused_tokens"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name), err_msg=name)
    assert fast.replicas == slow.replicas
    gaps = slow.gaps.expanded()
    assert fast.gaps.expanded() == gaps
    assert fast.gaps.order_statistics(range(len(gaps))) == gaps
    assert len(gaps) == int((requests.output_tokens - 1).sum())


@settings(max_examples=100, deadline=None)
@given(workloads())
def test_tokens_are_conserved(case: tuple[Requests, list[ReplicaSpec], str]) -> None:
    """Every request ends once, in order of its own milestones, and no token is decoded or computed for nothing."""
    requests, fleet, _ = case
    served = simulate_fleet(requests, fleet, router="round-robin")
    assert (served.arrival_ps <= served.scheduled_ps).all()
    assert (served.scheduled_ps <= served.first_token_ps).all()
    assert (served.first_token_ps <= served.finish_ps).all()
    assert sum(use.requests for use in served.replicas) == len(requests)
    assert all(use.peak_blocks <= use.kv_blocks for use in served.replicas)
    computed = sum(use.prompt_tokens for use in served.replicas) + int(served.reused_tokens.sum())
    decoded = sum(use.sequences_sum for use in served.replicas)
    if served.preemptions.sum() == 0:
        assert computed == requests.input_tokens.sum()
        assert decoded == (requests.output_tokens - 1).sum()
    else:
        assert computed >= requests.input_tokens.sum()
        assert decoded <= (requests.output_tokens - 1).sum()


def test_repetition_is_byte_identical() -> None:
    requests, fleet = _poisson(400, rate=40.0), [replica(Toy(token=MS // 100), kv_blocks=300) for _ in range(3)]
    first, second = (simulate_fleet(requests, fleet) for _ in range(2))
    assert first.finish_ps.tobytes() == second.finish_ps.tobytes()
    assert first.gaps.stretches.tobytes() == second.gaps.stretches.tobytes()
    assert first.metrics() == second.metrics()


def _poisson(count: int, *, rate: float, seed: int = 7, tokens: tuple[int, int] = (300, 60)) -> Requests:
    rng = np.random.default_rng(seed)
    return Requests.of(np.cumsum(rng.exponential(1 / rate, count)), rng.integers(1, 2 * tokens[0], count),
                       rng.integers(1, 2 * tokens[1], count))


# -- schedules worked by hand ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduling", ["sync", "async"])
def test_one_request_alone_costs_its_prompt_and_its_ramp(scheduling: str) -> None:
    model = Toy(base=5 * MS, token=1000, prompt=10_000)
    served = simulate_fleet(Requests.of([1.0], [500], [40]), [replica(model, scheduling=scheduling)])
    prompt = 5 * MS + 500 * 10_000
    decode = 39 * 5 * MS + 1000 * sum(range(500, 539))
    assert served.first_token_ps[0] - 10**12 == prompt // 1000
    assert served.finish_ps[0] - 10**12 == (prompt + decode) // 1000
    assert served.gaps.expanded() == [5 * MS + 1000 * k for k in range(500, 539)]


def test_a_long_prompt_is_cut_by_the_token_budget() -> None:
    """5,000 tokens under a budget of 2,048 take chunks of 2,048, 2,048 and 904 with growing history."""
    model = Toy(base=MS, prompt=100, history=1)
    served = simulate_fleet(Requests.of([0.0], [5000], [1]), [replica(model)])
    assert served.first_token_ps[0] == (3 * MS + 100 * 5000 + (0 + 2048 + 4096)) // 1000
    assert served.replicas[0].iterations == 3
    assert served.first_token_ps[0] == served.finish_ps[0]


def test_decodes_go_first_and_leave_the_rest_of_the_budget_to_prompts() -> None:
    """With 3 requests decoding, a prompt of 20 under a budget of 8 advances by 5 tokens an iteration."""
    served = simulate_fleet(Requests.of([0, 0, 0, 0.0105], [1, 1, 1, 20], [50, 50, 50, 2]),
                            [replica(Toy(base=10 * MS), max_sequences=8, token_budget=8)])
    assert served.scheduled_ps[3] == 20 * 10**9
    assert served.first_token_ps[3] == (20 + 4 * 10) * 10**9


def test_asynchronous_scheduling_sees_arrivals_one_iteration_later() -> None:
    """A request that comes in iteration 2 joins iteration 3 when composed between iterations, 4 when composed ahead."""
    requests = Requests.of([0.0, 0.0151], [10, 10], [100, 1])
    sync, later = (simulate_fleet(requests, [replica(Toy(base=10 * MS), scheduling=mode)])
                   for mode in ("sync", "async"))
    assert sync.first_token_ps[1] == 30 * 10**9
    assert later.first_token_ps[1] == 40 * 10**9
    assert sync.finish_ps[0] == later.finish_ps[0]


def test_asynchronous_scheduling_frees_a_seat_one_iteration_later() -> None:
    """Two seats: the third request enters after the first has left and its blocks are seen as free."""
    requests = Requests.of([0.0, 0.0, 0.0], [4, 4, 4], [3, 9, 1])
    sync, later = (simulate_fleet(requests, [replica(Toy(base=10 * MS), max_sequences=2, scheduling=mode)])
                   for mode in ("sync", "async"))
    assert sync.finish_ps[0] == later.finish_ps[0] == 30 * 10**9
    assert sync.first_token_ps[2] == 40 * 10**9
    assert later.first_token_ps[2] == 50 * 10**9


def test_the_last_admitted_request_is_preempted_and_recomputes_prompt_and_output() -> None:
    """Blocks of 4, six of them; prompts of 8 and 4 tokens.

    Iteration 1 fills 3 blocks. Iteration 2 gives each a block (5). Request 0 needs its fourth in iteration 6 (6 in
    all) and request 1 its third, which is not there: it is preempted with 5 tokens out and 1 + 4 recomputed prompt.
    """
    model = Toy(base=10 * MS, prompt=MS)
    served = simulate_fleet(Requests.of([0, 0], [8, 4], [7, 12]), [replica(model, kv_blocks=6, block_size=4)])
    assert served.preemptions.tolist() == [0, 1]
    first = 10 + 12
    assert served.first_token_ps.tolist() == [first * 10**9] * 2
    # Request 0 ends with iteration 7; request 1 waits in iteration 6 and cannot return until then (9 tokens need
    # three blocks, two are free), enters iteration 8 with 4 + 5 tokens and decodes the other six.
    assert served.finish_ps[0] == (first + 6 * 10) * 10**9
    assert served.finish_ps[1] == (first + 6 * 10 + (10 + 9) + 6 * 10) * 10**9
    assert served.replicas[0].prompt_tokens == 8 + 4 + 9
    assert max(served.gaps.expanded()) == (2 * 10 + 19) * MS


def test_a_request_enters_only_if_its_whole_input_fits() -> None:
    """Ten blocks, seven taken: a prompt of four blocks waits although its first chunk would fit."""
    limits = {"kv_blocks": 10, "block_size": 4, "max_sequences": 4, "token_budget": 8}
    served = simulate_fleet(Requests.of([0, 0.001], [25, 16], [3, 1]), [replica(Toy(base=10 * MS), **limits)])
    assert served.scheduled_ps[1] == served.finish_ps[0]


def test_a_repeated_prompt_is_found_in_the_cache_but_for_its_last_block() -> None:
    requests = Requests.of([0.0, 1.0], [64, 64], [1, 1], prefix_of=[-1, 0], shared_tokens=[0, 64])
    served = simulate_fleet(requests, [replica(Toy(base=MS, prompt=MS), caching="prefix", kv_blocks=8)])
    assert served.reused_tokens.tolist() == [0, 48]
    assert served.ttft_s.tolist() == pytest.approx([0.065, 0.017])


def test_the_cache_forgets_what_was_freed_first_and_prompts_from_their_end() -> None:
    """Eight blocks of 4: requests 0 and 1 leave 4 each; request 2 takes 4 blocks, all of request 0; 3 finds 1."""
    requests = Requests.of([0, 1, 2, 3, 4], [16, 16, 8, 16, 16], [1] * 5, prefix_of=[-1, -1, -1, 0, 1],
                           shared_tokens=[0, 0, 0, 16, 16])
    served = simulate_fleet(requests, [replica(caching="prefix", kv_blocks=8, block_size=4)])
    # Request 2 evicts the last two blocks of request 0; request 3 finds its first two and evicts two of request 1,
    # whose first two request 4 finds.
    assert served.reused_tokens.tolist() == [0, 0, 0, 8, 8]


# -- closed forms of whole runs ----------------------------------------------------------------------------------------


def test_saturation_throughput_is_seats_over_service_time() -> None:
    """Iterations of constant length d, S seats, o tokens each: N requests at once take N / S waves of o iterations."""
    seats, waves, output = 8, 25, 40
    served = simulate_fleet(Requests.of(np.zeros(seats * waves), [5] * (seats * waves), [output] * (seats * waves)),
                            [replica(Toy(base=10 * MS), max_sequences=seats, token_budget=64)])
    assert served.duration_s == pytest.approx(waves * output * 0.01)
    assert value(served, "output_throughput_tokens_per_s") == pytest.approx(seats / 0.01)
    assert served.replicas[0].row(served.duration_s)["busy_share"] == pytest.approx(1.0)


def test_littles_law_holds_between_the_engine_and_the_requests() -> None:
    """Decoding requests integrated over iterations = sum over requests of the time they spent decoding."""
    served = simulate_fleet(_poisson(500, rate=30.0), [replica(Toy(token=MS // 1000)) for _ in range(2)])
    assert served.preemptions.sum() == 0
    integral = sum(use.sequence_ticks for use in served.replicas)
    spent = int((served.finish_ps - served.first_token_ps).sum()) * 1000
    assert abs(integral - spent) <= 2 * 1000 * len(served.finish_ps)
    changes = served.concurrency()
    in_system = np.diff(changes["time_s"]) @ changes["requests"].to_numpy()[:-1]
    assert in_system == pytest.approx(served.e2el_s.sum())


def test_more_replicas_never_make_an_overloaded_fleet_slower() -> None:
    requests = _poisson(600, rate=200.0)
    waits = [simulate_fleet(requests, [replica(Toy(token=MS // 1000), max_sequences=16, token_budget=512)] * n)
             for n in (1, 2, 4, 8)]
    for fewer, more in itertools.pairwise(waits):
        assert more.ttft_s.mean() < fewer.ttft_s.mean()
        assert more.duration_s <= fewer.duration_s


def test_a_queue_of_one_seat_is_lindleys_recursion() -> None:
    """One seat, iterations of constant length: start = max(arrival, previous end), seen at iteration boundaries."""
    requests = _poisson(200, rate=1.0, tokens=(10, 50))
    served = simulate_fleet(requests, [replica(Toy(base=10 * MS), max_sequences=1, token_budget=64)])
    free_at = 0
    for arrival, output, finish in zip(requests.arrival_ps, requests.output_tokens, served.finish_ps, strict=True):
        free_at = max(int(arrival), free_at) + int(output) * 10**10
        assert finish == free_at


# -- routers -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=5).filter(any), st.integers(1, 300))
def test_deficit_dispatch_stays_within_one_request_of_its_shares(weights: list[int], count: int) -> None:
    groups = [str(i) for i in range(len(weights))]
    router = Deficit({g: [float(w)] for g, w in zip(groups, weights, strict=True)}, groups=groups, workloads=1)
    sent = dict.fromkeys(groups, 0)
    for done in range(1, count + 1):
        sent[router.choose(0)] += 1
        for group, weight in zip(groups, weights, strict=True):
            # Smooth weighted dispatch: below one request behind; ahead by less than one for each other group.
            assert -1 - 1e-9 < sent[group] - done * weight / sum(weights) < len(weights)
    assert all(sent[g] == 0 for g, w in zip(groups, weights, strict=True) if not w)


def test_planned_shares_are_kept_per_workload_type() -> None:
    n = 900
    workload = np.arange(n) % 2
    requests = Requests.of(np.arange(n) * 0.001, [10] * n, [5] * n, workload=workload)
    fleet = [replica(group="a"), replica(group="b"), replica(group="b")]
    served = simulate_fleet(requests, fleet, router="deficit", shares={"a": [1.0, 0.2], "b": [0.0, 0.8]})
    on_a = served.replica == 0
    assert on_a[workload == 0].all()
    assert on_a[workload == 1].sum() == 90
    counts = [use.requests for use in served.replicas]
    assert abs(counts[1] - counts[2]) <= 4


def test_least_outstanding_sends_work_to_the_emptier_replica() -> None:
    """A long request occupies replica 0; short ones go to replica 1 until it holds as much."""
    requests = Requests.of([0, 0.001, 0.002, 0.003], [1000, 10, 10, 10], [1000, 10, 10, 10])
    served = simulate_fleet(requests, [replica(), replica()], router="least-outstanding")
    assert served.replica.tolist() == [0, 1, 1, 1]
    after = Requests.of([0, 30.0], [1000, 10], [1000, 10])
    assert simulate_fleet(after, [replica(), replica()]).replica.tolist() == [0, 0]


def test_random_routing_is_the_generators() -> None:
    requests, fleet = _poisson(100, rate=50.0), [replica(), replica(), replica()]
    served = [simulate_fleet(requests, fleet, router="random", rng=np.random.default_rng(s)) for s in (1, 1, 2)]
    np.testing.assert_array_equal(served[0].replica, np.random.default_rng(1).integers(3, size=100))
    assert (served[0].replica == served[1].replica).all()
    assert (served[0].replica != served[2].replica).any()


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_metrics_are_those_of_vllm_bench_serve() -> None:
    """Recomputed from the per-request table and the expanded gaps, with numpy's percentiles."""
    requests = _poisson(300, rate=60.0)
    served = simulate_fleet(requests, [replica(Toy(token=MS // 500), kv_blocks=200, scheduling="async")] * 2)
    frame = served.frame()
    ttft = (frame.first_token_s - frame.arrival_s).to_numpy()
    e2el = (frame.finish_s - frame.arrival_s).to_numpy()
    several = (frame.output_tokens > 1).to_numpy()
    tpot = ((e2el - ttft)[several] / (frame.output_tokens[several] - 1)).to_numpy()
    itl = np.array(served.gaps.expanded()) / TICKS_PER_S
    for name, values in {"ttft": ttft, "tpot": tpot, "itl": itl, "e2el": e2el}.items():
        assert value(served, f"{name}_mean_s") == pytest.approx(values.mean(), rel=1e-9)
        assert value(served, f"{name}_std_s") == pytest.approx(values.std(), rel=1e-6)
        assert value(served, f"{name}_median_s") == pytest.approx(np.median(values), rel=1e-9)
        for p in (90, 95, 99):
            assert value(served, f"{name}_p{p}_s") == pytest.approx(np.percentile(values, p), rel=1e-9)
    seconds = frame.finish_s.max() - frame.arrival_s.min()
    tokens_in, tokens_out = frame.input_tokens.sum(), frame.output_tokens.sum()
    assert value(served, "request_throughput_per_s") == pytest.approx(300 / seconds)
    assert value(served, "input_throughput_tokens_per_s") == pytest.approx(tokens_in / seconds)
    assert value(served, "output_throughput_tokens_per_s") == pytest.approx(tokens_out / seconds)
    assert value(served, "total_throughput_tokens_per_s") == pytest.approx((tokens_in + tokens_out) / seconds)
    events = sorted([(t, 1) for t in frame.arrival_s] + [(t, -1) for t in frame.finish_s])
    assert value(served, "peak_concurrency") == np.cumsum([d for _, d in events]).max()


def test_goodput_counts_requests_that_keep_every_limit() -> None:
    requests = _poisson(300, rate=60.0)
    served = simulate_fleet(requests, [replica(Toy(token=MS // 500), kv_blocks=200)])
    slo = Slo(ttft_s=float(np.median(served.ttft_s)), tpot_s=float(np.percentile(served.tpot_s, 80)))
    kept = sum(t <= slo.ttft_s and p <= slo.tpot_s  # type: ignore[operator]
               for t, p in zip(served.ttft_s, served.tpot_s, strict=True))
    assert 0 < kept < 300
    assert value(served, "goodput_per_s", slo) == pytest.approx(kept / served.duration_s)
    assert value(served, "goodput_per_s", Slo()) == value(served, "request_throughput_per_s")


def test_sums_and_order_statistics_survive_beyond_64_bits() -> None:
    rows = [(200, 2**55, 2**40, 3000, 2**40), (3, 2**50, -5, 7, 12), (0, 99, 0, 1, 0)]
    packed = stretches(bytearray().join(pack_stretch(*row) for row in rows))
    found = sums(packed)
    lasting = [sum(t + i * j for j in range(c)) for _, t, i, c, _ in rows]
    assert found.busy_ticks == sum(lasting)
    assert found.sequence_ticks == sum(n * ticks for (n, *_), ticks in zip(rows, lasting, strict=True))
    assert found.context_sum == sum(k + n * j for n, _, _, c, k in rows for j in range(c))
    gaps = TokenGaps(stretches=packed[1:], single=np.array([2**62, 1]), long=(2**70, 2**65))
    assert gaps.order_statistics(range(len(gaps))) == gaps.expanded()
    assert gaps.expanded()[-2:] == [2**65, 2**70]
    assert math.isclose(gaps.moments()[0], np.mean([float(g) for g in gaps.expanded()]), rel_tol=1e-12)


# -- inputs ------------------------------------------------------------------------------------------------------------


def test_parents_come_from_block_ids_and_from_turn_lengths() -> None:
    parents, shared = prefix_parents([[1, 2, 3], [1, 2, 4], [9], [1, 2, 4, 5]], block_tokens=8,
                                     input_tokens=[24, 20, 8, 30])
    assert parents.tolist() == [-1, 0, -1, 1]
    assert shared.tolist() == [0, 16, 0, 20]
    parents, shared = turn_parents([10, 12, 10, 40, 50], [0, 0, 0, 10, 11])
    assert parents.tolist() == [-1, -1, -1, 2, -1]
    assert shared.tolist() == [0, 0, 0, 10, 0]


def test_impossible_requests_are_all_named_at_once() -> None:
    with pytest.raises(TraceError) as caught:
        Requests.of([0.0, 2.0, 1.0], [1, 0, 5], [1, 1, 0], prefix_of=[0, -1, 1], shared_tokens=[0, 0, 2])
    said = str(caught.value)
    for fault in ("arrivals run backwards", "input_tokens below 1", "output_tokens below 1", "not an earlier request",
                  "shared_tokens"):
        assert fault in said
    with pytest.raises(TraceError, match="differ in length"):
        Requests.of([0.0], [1, 2], [1])
    with pytest.raises(TraceError, match="arrival times"):
        Requests.of([math.nan], [1], [1])


def test_wrong_names_and_limits_say_what_is_allowed() -> None:
    requests = Requests.of([0.0], [1], [1])
    with pytest.raises(SpecError, match="least-outstanding"):
        simulate_fleet(requests, [replica()], router="least-outstandin")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="at least one request and one replica"):
        simulate_fleet(requests, [])
    with pytest.raises(SpecError, match="generator"):
        simulate_fleet(requests, [replica()], router="random")
    with pytest.raises(SpecError, match="shares"):
        simulate_fleet(requests, [replica(), replica()], router="deficit")
    with pytest.raises(SpecError, match="no replica is of this group"):
        simulate_fleet(requests, [replica(group="a"), replica(group="b")], router="deficit", shares={"c": [1.0]})
    with pytest.raises(SpecError, match="token_budget"):
        replica(max_sequences=64, token_budget=32)
    with pytest.raises(SpecError, match="allowed: async, sync"):
        replica(scheduling="eager")


def test_a_request_that_never_fits_is_infeasible() -> None:
    for step in ("coalesced", "every iteration"):
        with pytest.raises(Infeasible):
            simulate_fleet(Requests.of([0.0], [100], [29]), [replica(kv_blocks=7)], step=step)  # type: ignore[arg-type]
    assert simulate_fleet(Requests.of([0.0], [100], [29]), [replica(kv_blocks=8)]).replicas[0].peak_blocks == 8
