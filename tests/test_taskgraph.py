"""A task graph played by the clock ends when theory says, never breaks a limit, and says why it is stuck."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import CheckFailed, SpecError
from workbench.taskgraph import Link, Pool, Resource, Task, TaskGraph, TaskList, makespan_bound, simulate

CPU, GPU = Resource("cpu"), Resource("gpu")


def makespan(*tasks, **shared):
    return simulate(TaskGraph(tasks=tasks, **shared)).makespan_s


# ---------------------------------------------------------------------------------------------------- closed forms


def test_chain_takes_the_sum():
    times = [0.25, 1.5, 0.0, 3.0]
    tasks = [Task(name=f"t{i}", duration_s=d, after=(i - 1,) if i else ()) for i, d in enumerate(times)]
    assert makespan(*tasks) == sum(times)


def test_one_machine_takes_the_sum_in_any_order():
    times = [0.25, 1.5, 0.0, 3.0]
    tasks = [Task(name=f"t{i}", duration_s=d, on=(GPU,), priority=-i) for i, d in enumerate(times)]
    run = simulate(TaskGraph(tasks=tasks))
    assert run.makespan_s == sum(times)
    assert run.start_s.tolist() == [4.5, 3.0, 3.0, 0.0]


def test_fork_join_without_limits_takes_the_longest_branch():
    tasks = [Task(name="fork", duration_s=1), *(Task(name=f"b{k}", duration_s=k, after=(0,)) for k in range(1, 6)),
             Task(name="join", duration_s=2, after=(1, 2, 3, 4, 5))]
    assert makespan(*tasks) == 1 + 5 + 2


def test_graham_anomaly_of_list_scheduling_appears():
    """R. L. Graham, SIAM J. Appl. Math. 17 (1969), 416-429: three machines, nine tasks, twelve units of time."""
    times = [3, 2, 2, 2, 4, 4, 4, 4, 9]
    after = {8: (0,), 4: (3,), 5: (3,), 6: (3,), 7: (3,)}
    slots = Pool(name="machines", capacity=3, unit="1")

    def play(cut, pool):
        return makespan(*(Task(name=f"T{i + 1}", duration_s=t - cut, after=after.get(i, ()), acquire={"machines": 1},
                               release={"machines": 1}) for i, t in enumerate(times)), pools=[pool])

    assert play(0, slots) == 12
    assert play(1, slots) == 13  # every task one unit shorter
    assert play(0, Pool(name="machines", capacity=4, unit="1")) == 15  # one machine more


def pipeline(stages, batches, forward_s, backward_s, *, static=True, gpipe=False):
    """One F and one B per stage and micro-batch; 1F1B by static orders, or by credits and priority."""
    tasks, f, b = TaskList(), {}, {}
    devices = [Resource(f"gpu{s}") for s in range(stages)]
    for m in range(batches):
        for s in range(stages):
            f[s, m] = tasks.add(Task(name=f"F{m}", duration_s=forward_s, on=(devices[s],), priority=1,
                                     after=(f[s - 1, m],) if s else (), acquire={f"credits {s}": 1}))
    for m in range(batches):
        for s in reversed(range(stages)):
            b[s, m] = tasks.add(Task(name=f"B{m}", duration_s=backward_s, on=(devices[s],), release={f"credits {s}": 1},
                                     after=(f[s, m], *((b[s + 1, m],) if s < stages - 1 else ()))))
    orders = {}
    for s in range(stages if static else 0):
        warm = batches if gpipe else min(batches, stages - s)
        order = [f[s, m] for m in range(warm)]
        for m in range(batches):
            order += [b[s, m], *([f[s, m + warm]] if m + warm < batches else [])]
        orders[devices[s]] = order
    capacity = [batches if gpipe else stages - s for s in range(stages)]
    pools = [Pool(name=f"credits {s}", capacity=c, unit="1") for s, c in enumerate(capacity)]
    return TaskGraph(tasks=tasks, pools=pools, orders=orders)


@pytest.mark.parametrize("gpipe", [False, True])
@pytest.mark.parametrize(("stages", "batches"), [(1, 1), (1, 5), (2, 1), (4, 4), (4, 9), (8, 3), (5, 16)])
def test_pipeline_of_equal_stages_takes_its_closed_form(stages, batches, gpipe):
    """(M + D - 1)(tf + tb), for 1F1B and GPipe; the in-flight peak of stage s is D - s, or all M."""
    run = simulate(pipeline(stages, batches, 0.1, 0.2, gpipe=gpipe))
    assert run.makespan_s == pytest.approx((batches + stages - 1) * 0.3, rel=1e-14)
    peaks = [run.pool_peak[f"credits {s}"] for s in range(stages)]
    assert peaks == [batches if gpipe else min(batches, stages - s) for s in range(stages)]
    assert not run.timeline.violations()


def test_backward_first_with_credits_is_1f1b():
    """Priority to backward and D - s credits give the static 1F1B schedule without writing its order down."""
    by_credits, by_order = (simulate(pipeline(4, 12, 1.0, 2.0, static=static)) for static in (False, True))
    assert by_credits.timeline == by_order.timeline


def test_message_takes_latency_and_bytes_over_rate():
    link = Link(name="wire", alpha_s=0.5, bytes_per_s=100.0)
    assert makespan(Task(name="m", link="wire", bytes=300), links=[link]) == 3.5


@pytest.mark.parametrize(("sharing", "channels", "expected_s"), [
    ("exclusive", 1, 2 * 3.5),  # one after the other
    ("exclusive", 2, 3.5),  # side by side, each at the full rate
    ("shared", 1, 0.5 + 2 * 3.0),  # side by side, each at half the rate
])
def test_two_messages_on_one_link(sharing, channels, expected_s):
    link = Link(name="wire", alpha_s=0.5, bytes_per_s=100.0, sharing=sharing, channels=channels)
    run = simulate(TaskGraph(tasks=[Task(name="m", link="wire", bytes=300)] * 2, links=[link]))
    assert run.makespan_s == pytest.approx(expected_s, rel=1e-12)
    assert run.counters == {"bytes/wire": 600.0, "messages/wire": 2.0}
    assert not run.timeline.violations()


def test_a_late_transfer_slows_a_shared_link_only_while_both_run():
    """A alone for 1 s of its 3 s; then both at half rate until A ends at 1 + 2*2 = 5; B has 1 s of 3 left: 6."""
    link = Link(name="wire", alpha_s=0.0, bytes_per_s=100.0, sharing="shared")
    run = simulate(TaskGraph(tasks=[Task(name="A", link="wire", bytes=300),
                                    Task(name="B", link="wire", bytes=300, not_before_s=1.0)], links=[link]))
    assert run.end_s.tolist() == pytest.approx([5.0, 6.0], rel=1e-12)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 50)), min_size=1, max_size=8))
@settings(deadline=None)
def test_shared_link_equals_the_fluid_in_exact_fractions(transfers):
    """Integrate the equal division of the rate from event to event, with fractions instead of virtual time."""
    link = Link(name="wire", alpha_s=2.0, bytes_per_s=4.0, sharing="shared")
    run = simulate(TaskGraph(tasks=[Task(name="m", link="wire", bytes=b, not_before_s=t) for t, b in transfers],
                             links=[link]))
    waiting = {i: Fraction(t) + 2 for i, (t, _) in enumerate(transfers)}
    left, ends, now = {}, {}, Fraction(0)
    while waiting or left:
        for i in [i for i, at in waiting.items() if at == now]:
            left[i] = Fraction(transfers[i][1])
            del waiting[i]
        for i in [i for i, rest in left.items() if rest == 0]:
            ends[i] = now
            del left[i]
        steps = [at - now for at in waiting.values()] + [rest * len(left) / 4 for rest in left.values()]
        if steps:
            step = min(steps)
            left = {i: rest - step * 4 / len(left) for i, rest in left.items()}
            now += step
    assert run.end_s.tolist() == pytest.approx([float(ends[i]) for i in range(len(transfers))], rel=1e-12)
    assert not run.timeline.violations()


def test_all_that_ends_at_an_instant_ends_before_anything_starts():
    """At 3 s "cpu" and transfer A end and B joins A's link; "urgent" waits for A and still beats "later" to the gpu."""
    link = Link(name="wire", alpha_s=1.0, bytes_per_s=4.0, sharing="shared")
    # The end of A is foreseen anew at 2.5 s, when C leaves, so that it comes last among the events of 3 s.
    run = simulate(TaskGraph(links=[link], tasks=[
        Task(name="cpu", duration_s=3, on=(CPU,)), Task(name="A", link="wire", bytes=5),
        Task(name="B", link="wire", bytes=2, not_before_s=2.0),
        Task(name="urgent", duration_s=1, on=(GPU,), after=(1,)),
        Task(name="later", duration_s=1, on=(GPU,), after=(0,), priority=1),
        Task(name="C", link="wire", bytes=3)]))
    assert run.end_s[[1, 5]].tolist() == [3.0, 2.5]
    assert run.start_s[[3, 4]].tolist() == [3.0, 4.0]


@pytest.mark.parametrize("sharing", ["exclusive", "shared"])
def test_a_link_shows_as_many_lanes_as_it_has_messages_at_once(sharing):
    link = Link(name="wire", alpha_s=1.0, bytes_per_s=1.0, sharing=sharing, channels=2)
    waves = [Task(name="m", link="wire", bytes=1, after=(i - 2,) if i > 1 else ()) for i in range(20)]
    assert len(simulate(TaskGraph(tasks=waves, links=[link])).timeline.lanes) == 2


def test_not_before_delays_a_task_and_nothing_else():
    run = simulate(TaskGraph(tasks=[Task(name="late", duration_s=1, on=(GPU,), not_before_s=5.0, priority=-1),
                                    Task(name="now", duration_s=2, on=(GPU,))]))
    assert run.start_s.tolist() == [5.0, 0.0]


def test_a_task_on_several_resources_holds_all_of_them():
    run = simulate(TaskGraph(tasks=[Task(name="a", duration_s=2, on=(CPU,)),
                                    Task(name="both", duration_s=1, on=(GPU, CPU)),
                                    Task(name="b", duration_s=5, on=(GPU,), priority=1)]))
    # "both" waits for the cpu; meanwhile the gpu is free and list scheduling does not keep it idle.
    assert run.start_s.tolist() == [0.0, 5.0, 0.0]
    on_both = [(s.device, s.start_s, s.end_s) for s in run.timeline if s.name == "both"]
    assert sorted(on_both) == [("cpu", 5.0, 6.0), ("gpu", 5.0, 6.0)]


# -------------------------------------------------------------------------------- any graph, against brute force


@st.composite
def graphs(draw):
    """Random DAGs with everything that can be shared; some cannot be played to the end."""
    size = draw(st.integers(1, 10))
    links = [Link(name="one", alpha_s=1.0, bytes_per_s=2.0), Link(name="two", alpha_s=0.0, bytes_per_s=1.0, channels=2)]
    pools = [Pool(name="p", capacity=draw(st.integers(2, 5)), held=draw(st.integers(0, 1))),
             Pool(name="q", capacity=3, unit="1")]
    tasks = []
    for i in range(size):
        link = draw(st.sampled_from([None, None, "one", "two"]))
        amounts = st.dictionaries(st.sampled_from(["p", "q"]), st.integers(0, 2), max_size=2)
        acquire = draw(amounts)
        tasks.append(Task(
            name=f"t{i}", duration_s=0.0 if link else draw(st.integers(0, 4)), link=link,
            bytes=2 * draw(st.integers(0, 3)),
            on=tuple(draw(st.lists(st.sampled_from([CPU, GPU]), max_size=2, unique=True))),
            after=tuple(draw(st.lists(st.integers(0, i - 1), max_size=3))) if i else (),
            priority=draw(st.integers(-1, 1)), not_before_s=draw(st.sampled_from([0, 0, 0, 1, 3])),
            acquire=acquire, release=draw(st.one_of(st.just(acquire), amounts))))
    orders = {}
    if draw(st.booleans()):
        on_gpu = [i for i, t in enumerate(tasks) if GPU in t.on]
        orders[GPU] = draw(st.one_of(st.just(on_gpu), st.permutations(on_gpu)))
    return TaskGraph(tasks=tasks, links=links, pools=pools, orders=orders)


def brute_schedule(graph):
    """Starts and ends by looking at every task at every instant; ``None`` if stuck or a pool runs below empty."""
    links = {link.name: link for link in graph.links}
    length = [links[t.link].alpha_s + t.bytes / links[t.link].bytes_per_s if t.link else t.duration_s
              for t in graph.tasks]
    held = {pool.name: pool.held for pool in graph.pools}
    start, end = {}, {}
    now = 0.0

    def may_start(i):
        task = graph.tasks[i]
        running = [graph.tasks[j] for j in start if j not in end]
        turn = all(before in end for order in graph.orders.values() for before, then in pairwise(order) if then == i)
        return (i not in start and task.not_before_s <= now and turn and all(j in end for j in task.after)
                and not any(set(task.on) & set(r.on) for r in running)
                and (task.link is None or sum(r.link == task.link for r in running) < links[task.link].channels)
                and all(held[p.name] + task.acquire.get(p.name, 0) <= p.capacity for p in graph.pools
                        if task.acquire.get(p.name)))

    while len(end) < len(graph.tasks):
        for i in [i for i in start if i not in end and start[i] + length[i] == now]:
            end[i] = now
            for name, amount in graph.tasks[i].release.items():
                held[name] -= amount
        if min(held.values()) < 0:
            return None
        for i in sorted(range(len(graph.tasks)), key=lambda i: (graph.tasks[i].priority, i)):
            if may_start(i):
                start[i] = now
                for name, amount in graph.tasks[i].acquire.items():
                    held[name] += amount
        if any(i not in end and start[i] + length[i] == now for i in start):
            continue
        later = [start[i] + length[i] for i in start if i not in end]
        later += [t.not_before_s for t in graph.tasks if t.not_before_s > now]
        if not later:
            return None if len(end) < len(graph.tasks) else (start, end)
        now = min(later)
    return start, end


@given(graphs())
@settings(max_examples=250, deadline=None)
def test_any_graph_runs_as_the_rules_say(graph):
    """Equal to the brute list scheduler, start by start; stuck if and only if that is stuck."""
    expected = brute_schedule(graph)
    if expected is None:
        with pytest.raises(CheckFailed):
            simulate(graph)
        return
    run = simulate(graph)
    start, end = expected
    assert run.start_s.tolist() == [start[i] for i in range(len(graph.tasks))]
    assert run.end_s.tolist() == [end[i] for i in range(len(graph.tasks))]


@given(graphs())
@settings(max_examples=100, deadline=None)
def test_any_graph_keeps_its_bounds_and_limits(graph):
    try:
        run = simulate(graph)
    except CheckFailed:
        return
    links = {link.name: link for link in graph.links}
    serial = sum(links[t.link].alpha_s + t.bytes / links[t.link].bytes_per_s if t.link else t.duration_s
                 for t in graph.tasks)
    assert makespan_bound(graph).value <= run.makespan_s <= serial + max(t.not_before_s for t in graph.tasks)
    assert not run.timeline.violations()
    levels = {level.name: level for level in run.timeline.levels}
    for pool in graph.pools:
        moments = sorted({*run.start_s.tolist(), *run.end_s.tolist()})
        # Units taken by all that started and not given back by all that ended, recounted at every moment.
        took = [(t.acquire.get(pool.name, 0), at) for t, at in zip(graph.tasks, run.start_s, strict=True)]
        gave = [(t.release.get(pool.name, 0), at) for t, at in zip(graph.tasks, run.end_s, strict=True)]
        held = [pool.held + sum(n for n, at in took if at <= now) - sum(n for n, at in gave if at <= now)
                for now in moments]
        assert run.pool_peak[pool.name] <= pool.capacity
        assert run.pool_peak[pool.name] >= max(held)
        level = levels[pool.name]
        at = np.searchsorted(level.time_s, moments, side="right") - 1
        assert level.value[at].tolist() == held
    for link in graph.links:
        sent = [t.bytes for t in graph.tasks if t.link == link.name]
        assert run.link_bytes[link.name] == sum(sent) and run.link_messages[link.name] == len(sent)
        assert sum(s.bytes for s in run.timeline if s.device == link.name) == sum(sent)


@given(graphs(), st.integers(2, 5))
@settings(max_examples=60, deadline=None)
def test_slower_by_a_factor_is_longer_by_that_factor(graph, factor):
    def scaled(task):
        return Task(name=task.name, duration_s=task.duration_s * factor, on=task.on, after=task.after,
                    priority=task.priority, not_before_s=task.not_before_s * factor)

    tasks = [scaled(t) for t in graph.tasks]
    once = TaskGraph(tasks=[Task(name=t.name, duration_s=t.duration_s / factor, on=t.on, after=t.after,
                                 priority=t.priority, not_before_s=t.not_before_s / factor) for t in tasks])
    assert makespan(*tasks) == pytest.approx(factor * simulate(once).makespan_s, rel=1e-12)


# ----------------------------------------------------------------------------------------- determinism and speed

DIGEST = "from tests.test_taskgraph import *; print(simulate(mixed_graph()).timeline.digest())"


def mixed_graph():
    rng = np.random.default_rng(7)
    devices = [Resource(f"gpu{k}", stream) for k in range(4) for stream in ("compute", "send")]
    tasks = TaskList()
    for i in range(300):
        over_link = i % 3 == 0
        after = tuple(int(j) for j in rng.integers(max(0, i - 20), i, 2)) if i else ()
        tasks.add(Task(name=f"t{i}", duration_s=0.0 if over_link else float(rng.random()), after=after,
                       on=(devices[int(rng.integers(8))],), link=["a", "b"][i % 2] if over_link else None,
                       bytes=int(rng.integers(1000)), acquire={"memory": 5, "credits": 1},
                       release={"memory": 5, "credits": 1}))
    return TaskGraph(tasks=tasks, pools=[Pool(name="memory", capacity=20), Pool(name="credits", capacity=7, unit="1")],
                     links=[Link(name="a", alpha_s=1e-3, bytes_per_s=1e3), Link(
                         name="b", alpha_s=1e-3, bytes_per_s=1e3, sharing="shared")])


def test_one_graph_gives_one_timeline_whatever_the_hash_seed(tmp_path):
    here = simulate(mixed_graph()).timeline
    assert not here.violations()
    files = [simulate(mixed_graph()).timeline.to_chrome_trace(tmp_path / f"{k}.json").read_bytes() for k in range(2)]
    assert files[0] == files[1]
    for seed in ("1", "2"):
        done = subprocess.run([sys.executable, "-c", DIGEST], env={**os.environ, "PYTHONHASHSEED": seed}, text=True,
                              capture_output=True, check=True)
        assert done.stdout.strip() == here.digest()


def test_ties_are_broken_by_position_not_by_rounding():
    """0.1 + 0.2 and 0.3 are one instant on this clock, so priority decides and not the last digit of a sum."""
    tasks = [Task(name="a", duration_s=0.1), Task(name="b", duration_s=0.2, after=(0,)), Task(name="c", duration_s=0.3),
             Task(name="after b", duration_s=1, on=(GPU,), after=(1,), priority=-1),
             Task(name="after c", duration_s=1, on=(GPU,), after=(2,))]
    assert simulate(TaskGraph(tasks=tasks)).start_s[[3, 4]].tolist() == [0.3, 1.3]


def test_waiting_tasks_cost_no_time_while_they_wait():
    """Work per event must not grow with the queue: ten times the queue, about ten times the events, not a hundred."""
    def calls(count):
        seen = 0

        def tally(frame, event, arg):
            nonlocal seen
            seen += event == "call"

        graph = TaskGraph(tasks=[Task(name="k", duration_s=1, on=(GPU,), acquire={"m": 1}, release={"m": 1})] * count,
                          pools=[Pool(name="m", capacity=1)])
        sys.setprofile(tally)
        try:
            simulate(graph)
        finally:
            sys.setprofile(None)
        return seen

    assert calls(3000) < 12 * calls(300)


# ------------------------------------------------------------------------------------------------------ deadlocks


def test_orders_that_wait_on_each_other_are_named():
    """Two ranks that post their sends and receives in opposite orders."""
    tasks = [Task(name="send x", on=(CPU,)), Task(name="recv x", on=(GPU,), after=(0,)),
             Task(name="send y", on=(GPU,)), Task(name="recv y", on=(CPU,), after=(2,))]
    with pytest.raises(CheckFailed) as stuck:
        simulate(TaskGraph(tasks=tasks, orders={CPU: [3, 0], GPU: [1, 2]}))
    for line in ("4 tasks wait on each other", "send x waits for recv y (order of cpu/compute)",
                 "recv y waits for send y (dependency)", "send y waits for recv x (order of gpu/compute)",
                 "recv x waits for send x (dependency)"):
        assert line in str(stuck.value)
    assert simulate(TaskGraph(tasks=tasks, orders={CPU: [0, 3], GPU: [1, 2]})).makespan_s == 0


def test_a_circular_dependency_is_named_even_behind_innocent_tasks():
    tasks = [Task(name="fine"), Task(name="victim", after=(2,)), Task(name="a", after=(3, 0)),
             Task(name="b", after=(2,))]
    with pytest.raises(CheckFailed, match="2 tasks wait on each other") as stuck:
        simulate(TaskGraph(tasks=tasks))
    assert "victim" not in str(stuck.value)
    with pytest.raises(CheckFailed):
        makespan_bound(TaskGraph(tasks=tasks))


def test_memory_that_is_never_freed_is_named():
    tasks = [*(Task(name=f"F{m}", duration_s=1, acquire={"memory": 4}) for m in range(3)),
             Task(name="B", duration_s=1, after=(0, 1, 2), release={"memory": 12})]
    with pytest.raises(CheckFailed) as stuck:
        simulate(TaskGraph(tasks=tasks, pools=[Pool(name="memory", capacity=10)]))
    text = str(stuck.value)
    assert "2 of 4 tasks never start" in text
    assert "pool memory holds 8 of 10 bytes; waiting for room: F2 (4); still to give back: B" in text


def test_a_task_larger_than_its_pool_is_named():
    with pytest.raises(CheckFailed, match="big takes 11 bytes of pool memory, which holds 10"):
        makespan(Task(name="big", acquire={"memory": 11}), pools=[Pool(name="memory", capacity=10)])


def test_giving_back_what_nobody_took_is_named():
    with pytest.raises(CheckFailed, match="more than was taken"):
        makespan(Task(name="b", release={"memory": 1}), pools=[Pool(name="memory", capacity=10)])


def test_all_faults_of_a_graph_are_reported_at_once():
    tasks = [Task(name="a", after=(7,)), Task(name="b", link="wires", bytes=1), Task(name="c", duration_s=float("nan")),
             Task(name="d", acquire={"memry": 1}), Task(name="e", on=(GPU, GPU)),
             Task(name="f", link="wire", duration_s=1.0)]
    with pytest.raises(SpecError) as wrong:
        makespan(*tasks, links=[Link(name="wire", alpha_s=0, bytes_per_s=0)], pools=[Pool(name="memory", capacity=1)],
                 orders={GPU: [0]})
    text = str(wrong.value)
    assert len(wrong.value.faults) == 8
    assert "did you mean 'wire'" in text and "did you mean 'memory'" in text and "order of gpu/compute" in text


def test_an_empty_graph_is_over_at_once():
    run = simulate(TaskGraph(tasks=[]))
    assert run.makespan_s == 0 and len(run.timeline) == 0 and makespan_bound(TaskGraph(tasks=[])).value == 0


def test_an_infinite_pool_limits_nothing_and_records_the_peak():
    tasks = [Task(name="a", duration_s=1, acquire={"m": 5}, release={"m": 5})] * 3
    run = simulate(TaskGraph(tasks=tasks, pools=[Pool(name="m", capacity=float("inf"))]))
    assert run.makespan_s == 1 and run.pool_peak == {"m": 15.0}
