"""``wb``: the arrows of the picture as verbs.

stdout is data, stderr is talk; ``--json`` gives data for programs. Exit codes: 0 done, 1 a workbench error,
2 bad spec or input, 3 infeasible, 4 missing profile, 5 check failed, 6 solver, 7 not built yet, 130 interrupted.
Nothing heavy is imported here: each verb imports what it needs.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from workbench import __version__
from workbench.errors import SpecError, WorkbenchError, nearest

__all__ = ["main", "parser"]

Verb = Callable[[argparse.Namespace], int]


def say(text: str) -> None:
    """Talk, on stderr."""
    print(text, file=sys.stderr, flush=True)


def emit(args: argparse.Namespace, data: Any, text: Callable[[], str]) -> None:
    """Data, on stdout: as JSON when asked for, else as text."""
    print(json.dumps(data, indent=1, default=_jsonable) if args.json else text())


def _jsonable(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def number(value: Any) -> str:
    """A cell for people: four significant digits, thousands separated, blank for absent."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or (value == int(value) and abs(value) >= 1000):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def table(rows: Sequence[dict[str, Any]], columns: Iterable[str] | None = None) -> str:
    """Rows as an aligned text table; columns of numbers are right-aligned."""
    if not rows:
        return "(nothing)"
    names = list(columns) if columns is not None else list(dict.fromkeys(k for row in rows for k in row))
    cells = [[number(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    right = [all(isinstance(row.get(name), (int, float, type(None))) for row in rows) for name in names]

    def line(parts: Sequence[str]) -> str:
        padded = (p.rjust(w) if r else p.ljust(w) for p, w, r in zip(parts, widths, right, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(names), line(["-" * w for w in widths]), *map(line, cells)])


def _list(args: argparse.Namespace) -> int:
    from workbench import study

    rows = []
    for name in study.names():
        found = study.load(name)
        rows.append({"study": name, "plans": found.title.removeprefix(name + ": "),
                     "planners": ", ".join(found.planner.PLANNERS),
                     "executor": "yes" if found.has_executor() else "no"})
    def text() -> str:
        return "\n\n".join(_paragraph(row) for row in rows) + "\n\nnext: wb schema STUDY, wb plan STUDY"

    emit(args, rows, text)
    return 0


def _paragraph(row: dict[str, str]) -> str:
    """One study for people: what it plans, its planners (the first is the default), whether it runs."""
    fill = functools.partial(textwrap.fill, width=100, subsequent_indent=" " * 12, break_on_hyphens=False)
    lines = [fill(f"{row['study']:<12}{row['plans']}"), fill(f"{'':<12}planners: {row['planners']}")]
    return "\n".join(lines if row["executor"] == "yes" else [*lines, f"{'':<12}no executor yet"])


def _schema(args: argparse.Namespace) -> int:
    from workbench import study
    from workbench.job import PlannerChoice
    from workbench.spec import fields_of
    from workbench.sweep import Sweep

    planner = study.load(args.study).planner
    rows = [{"key": f.path, "type": f.type, "default": f.default, "about": f.about}
            for f in [*fields_of(planner.Problem), *fields_of(PlannerChoice, "planner."), *fields_of(Sweep, "sweep.")]]
    data = {"study": args.study, "fields": rows, "planners": dict(planner.PLANNERS)}

    def text() -> str:
        listed = table([{"planner": k, "does": v} for k, v in planner.PLANNERS.items()])
        return f'study = "{args.study}"\n\n{table(rows)}\n\n{listed}'

    emit(args, data, text)
    return 0


def _planned(args: argparse.Namespace, *, anew: bool) -> tuple[Any, Any, Any]:
    """(job, run folder, plan) of the spec or run folder asked for; plans unless a stored plan may be reused."""
    from pathlib import Path

    from workbench import runs
    from workbench.job import open_job

    stored = next((f for f in (Path(args.spec), Path(args.runs) / args.spec) if (f / "spec.json").exists()), None)
    if stored is not None:
        if args.set:
            raise SpecError("a run folder answers one question, whose keys --set cannot change", where=str(stored),
                            allowed=["a spec file or a study's name, with --set"],
                            next_command=f"wb {args.verb} SPEC --set {args.set[0]}")
        folder = runs.RunFolder(stored)
        job = folder.job()
    else:
        job = open_job(args.spec, args.set)
        folder = runs.RunFolder.of(job, args.runs)
    if (folder.has("plan.json") and not anew) or (args.verb == "check" and stored is not None):
        plan = folder.load_plan(job)
        job.check(plan)  # the data behind the spec may have changed since, such as a trace fetched meanwhile
    else:
        say(f"planning {job.study.name} with {job.planner.name or next(iter(job.study.planner.PLANNERS))} …")
        plan = job.plan()
        job.check(plan)
        folder.save_plan(job, plan)
    return job, folder, plan


def _plan(args: argparse.Namespace) -> int:
    job, folder, plan = _planned(args, anew=True)
    _show_plan(args, job, folder, plan)
    return 0


def _show_plan(args: argparse.Namespace, job: Any, folder: Any, plan: Any) -> None:
    from workbench.outcome import predicted_range
    from workbench.spec import dump

    planner = job.study.planner
    metrics = planner.predicted(job.problem, plan)
    error = plan.certificate.cost_error

    def row(metric: Any) -> dict[str, Any]:
        low, high = predicted_range(metric, error) or (None, None)
        between = {} if error is None else {"low": low, "high": high}
        return {"metric": metric.name, "predicted": metric.value, **between, "unit": metric.unit}

    def text() -> str:
        certificate = plan.certificate
        scarce = [{"one more": name, f"{certificate.unit} better": value}
                  for name, value in certificate.shadow_prices.items()]
        return "\n\n".join([
            planner.in_words(plan), table(planner.decision(plan)), certificate.line(),
            *([table(scarce)] if scarce else []),
            table([row(m) for m in metrics]),
            *([] if error is None else [f"low, high: what the errors of the cost tables allow ({error:.1%}, 90 %)"])])

    emit(args, {"run": str(folder.path), "plan": dump(plan)}, text)
    say(f"plan: {folder.path / 'plan.json'}")


def _check(args: argparse.Namespace) -> int:
    _, folder, plan = _planned(args, anew=False)
    emit(args, {"run": str(folder.path), "violations": []},
         lambda: f"no violations; {plan.certificate.line()}")
    return 0


def _simulate(args: argparse.Namespace) -> int:
    job, folder, plan = _planned(args, anew=False)
    say("simulating …")
    outcome = job.simulate(plan)
    folder.save_outcome(outcome)
    _show_outcomes(args, job, folder, plan)
    return 0


def _run(args: argparse.Namespace) -> int:
    job, folder, plan = _planned(args, anew=False)
    outcome = job.run(plan, args.device)
    folder.save_outcome(outcome)
    _show_outcomes(args, job, folder, plan)
    return 0


def _show_outcomes(args: argparse.Namespace, job: Any, folder: Any, plan: Any) -> None:
    from workbench.outcome import side_by_side, whose_times

    outcomes = [o for o in (folder.load_outcome(c) for c in ("simulated", "measured")) if o is not None]
    rows = side_by_side(job.study.planner.predicted(job.problem, plan), *outcomes)
    present = ["predicted", *(o.clock for o in outcomes)]
    emit(args, {"run": str(folder.path), "metrics": rows}, lambda: table(rows, ["metric", *present, "unit"]))
    said = whose_times((p.device for p in job.costs.provenance().values()), plan.sources, outcomes)
    if said is not None:
        say(said)
    say(f"run folder: {folder.path}")


def _report(args: argparse.Namespace) -> int:
    from workbench.pages import write_page

    job, folder, plan = _planned(args, anew=False)
    if not folder.has("simulated.json"):
        say("simulating …")
        folder.save_outcome(job.simulate(plan))
    say("writing the report …")
    page = write_page(job, folder, plan)
    if args.json:
        emit(args, {"run": str(folder.path), "report": str(page)}, str)
    else:
        _show_plan(args, job, folder, plan)
        print()
        for title, rows in job.study.planner.comparison(job.problem, job.costs, plan):
            print(f"{title}\n\n{table(rows)}\n")
        _show_outcomes(args, job, folder, plan)
        say(f"report: {page}")
    return 0


def _compare(args: argparse.Namespace) -> int:
    from workbench import runs
    from workbench.compare import compare

    found = compare(runs.find(args.first, args.runs), runs.find(args.second, args.runs))

    def text() -> str:
        decided = "\n".join(f"{name}: {words}"
                            for name, words in zip((found.left, found.right), found.decided, strict=True))
        asked = table(found.spec) if found.spec else "(the same spec)"
        return f"{decided}\n\n{asked}\n\n{table(found.metrics)}"

    emit(args, {"decided": found.decided, "spec": found.spec, "metrics": found.metrics}, text)
    return 0


def _reproduce(args: argparse.Namespace) -> int:
    from pathlib import Path

    from workbench import study
    from workbench.reproduce import counted, reproduce

    found = study.load(args.study)
    folder = Path(args.runs) / f"{args.study}-claims"
    try:
        rows = reproduce(found, folder, only=args.claim, full=args.full, tell=say)
    except KeyboardInterrupt:
        say(f"interrupted; finished rows are kept in {folder}. next: wb reproduce {args.study} --claim ID")
        raise

    def text() -> str:
        shown = [row | {"tolerance": _tolerance(row)} for row in rows]
        notes = "\n".join(f"{row['claim']}: {row['about']} ({row['source']})"
                          + (f"; {row['note']}" if row["note"] else "") for row in rows)
        columns = ("claim", "published", "tolerance", "ours", "unit", "clock", "verdict")
        return f"{table(shown, columns)}\n\n{counted(rows)}\n\n{notes}"

    emit(args, rows, text)
    say(f"claims: {folder / 'claims.json'}")
    return 0


def _tolerance(row: dict[str, Any]) -> str:
    """How far ours may be from the published value: ± 5 %, at most + 0 % …"""
    sign = {"equal": "±", "at most": "at most +", "at least": "at least −"}[row["sense"]]
    return f"{sign} {row['tolerance']:g}" if row["published"] == 0 else f"{sign} {100 * row['tolerance']:g} %"


def _tour(args: argparse.Namespace) -> int:
    from workbench.tour import tour

    metrics, went = tour(args.runs, tell=say)
    steps = ("study", "plan", "check", "simulate", "run", "seconds", "costs of")
    notes = "".join(f"\n{row['study']}: {row['note']}" for row in went if row["note"])
    emit(args, {"metrics": metrics, "studies": went},
         lambda: f"{table(metrics)}\n\n{table(went, steps)}\n{notes}".rstrip())
    say(f"{sum(row['seconds'] for row in went):.1f} s in all; next: wb report STUDY")
    return 0


def _sweep(args: argparse.Namespace) -> int:
    from workbench.sweep import open_sweep, run_sweep

    sweep, tasks, folder = open_sweep(args.spec, tuple(args.set), args.runs)
    say(f"{len(tasks)} tasks; records in {folder}")

    def tell(row: dict[str, Any], done: int, total: int) -> None:
        say(f"[{done}/{total}] {row['id']} {row['status']}")

    try:
        rows = run_sweep(sweep, tasks, folder, on_result=tell)
    except KeyboardInterrupt:
        say(f"interrupted; finished results are kept. next: wb sweep {args.spec} (does only what is missing)")
        raise
    keys = [*sweep.over, "status", "objective", "bound", "gap", "unit", "seconds"]
    emit(args, rows, lambda: table(rows, keys))
    return 0


def _traces(args: argparse.Namespace) -> int:
    import importlib

    catalogue = importlib.import_module("traces.catalogue")
    if args.action == "list":
        rows = catalogue.list_rows()
        emit(args, rows, lambda: table(rows, ["name", "kind", "rows", "licence", "where", "description"]))
        return 0
    if not args.name:
        raise SpecError(f"wb traces {args.action} wants a name", next_command="wb traces list")
    if args.action == "fetch":
        path = str(catalogue.fetch(args.name))
        emit(args, {"name": args.name, "path": path}, lambda: path)
        return 0
    shown = catalogue.show(args.name)
    emit(args, shown, lambda: "\n\n".join(facts(shown)))
    return 0


def facts(data: dict[str, Any]) -> list[str]:
    """A mapping for people: its plain values as one table, then each list of rows under its key."""
    plain = [{"fact": key, "value": value} for key, value in data.items() if not isinstance(value, list)]
    return [table(plain), *(f"{key}\n{table(value)}" for key, value in data.items() if isinstance(value, list))]


def _profile(args: argparse.Namespace) -> int:
    import importlib

    from workbench.study import own_campaign

    if args.report:
        page = str(importlib.import_module("profilers.roofpage").write_page(args.profiles))
        emit(args, {"report": page}, lambda: page)
        return 0
    module = own_campaign(args.kernels) or importlib.import_module("profilers.campaign")
    campaign = module.Campaign(args.kernels, device=args.device, folder=args.profiles)
    budget_s = seconds(args.budget)
    planned = campaign.plan_rows()
    say(table(planned))
    for name, why in campaign.left_out.items():
        say(f"left out: {name} {why}")
    say(f"{sum(r['points'] for r in planned)} points, about {sum(r['about_s'] for r in planned)} s; then the gaps that "
        f"interpolation is least sure of, until {args.budget} are spent (Ctrl-C keeps what was measured)")
    try:
        rows = campaign.run(budget_s, say)
    except KeyboardInterrupt:
        say(f"interrupted; finished points are kept. next: wb profile --profiles {args.profiles}")
        raise
    emit(args, {"folder": args.profiles, "tables": rows}, lambda: table(rows))
    say(f"tables: {args.profiles}; in a spec: [costs] {campaign.section}")
    return 0


def seconds(text: str) -> float:
    """A length of time such as 90s, 5m or 1h, in seconds; a bare number counts seconds.

    Raises:
        SpecError: it is none, or not above 0.
    """
    unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:])
    try:
        value = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise SpecError(f"{text!r} is no length of time", where="--budget", allowed=["90s", "5m", "1h"],
                        next_command="wb profile --budget 90s")
    return value


def _doctor(args: argparse.Namespace) -> int:
    from workbench.doctor import examine

    rows = examine()
    emit(args, rows, lambda: table(rows))
    return 0


def _bench(args: argparse.Namespace) -> int:
    import subprocess

    from workbench.doctor import benchmark_module

    return subprocess.call([sys.executable, "-m", benchmark_module(args.study)])


class _Parser(argparse.ArgumentParser):
    """Faults of the command line in the words of all others: what, the nearest name, and what to type next."""

    def error(self, message: str) -> NoReturn:
        word = re.search(r"invalid choice: '([^']*)'|unrecognized arguments: (--[^ =]+)", message)
        actions = list(self._actions)
        for verbs in (a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction)):
            actions += [a for sub in verbs.values() for a in sub._actions]
        known = [o for a in actions for o in (*a.option_strings, *(a.choices or ()))]
        close = nearest(word[1] or word[2], known) if word else None
        fault = SpecError(message, hint=f"did you mean {close}?" if close else None, next_command=f"{self.prog} --help")
        self.exit(fault.exit_code, f"{self.prog}: {fault}\n")


def parser() -> argparse.ArgumentParser:
    """The whole command line; its option set is frozen by a test."""
    top = _Parser(prog="wb", description="Plan with proofs, simulate, run, report.")
    top.add_argument("--version", action="version", version=f"planner-workbench {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, function: Verb, help_text: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=help_text, description=help_text)
        made.set_defaults(function=function)
        made.add_argument("--json", action="store_true", help="data as JSON on stdout")
        return made

    def on_spec(made: argparse.ArgumentParser, what: str = "a spec file, a study's name, or a run folder") -> None:
        made.add_argument("spec", metavar="SPEC", help=what)
        made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the spec")

    def with_runs(made: argparse.ArgumentParser) -> None:
        made.add_argument("--runs", default="runs", metavar="FOLDER", help="where run folders live (default: runs)")

    verb("doctor", _doctor, "what this machine and installation can do")
    verb("list", _list, "the studies")
    verb("schema", _schema, "every key of a study's spec").add_argument("study", metavar="STUDY")
    for name, function, help_text in (
        ("plan", _plan, "search for a plan and prove how good it is"),
        ("check", _check, "re-derive a plan's feasibility and objective"),
        ("simulate", _simulate, "play a plan on the virtual clock"),
        ("run", _run, "run a plan for real and verify its outputs"),
        ("report", _report, "plan, simulate and write one self-contained page"),
    ):
        made = verb(name, function, help_text)
        on_spec(made)
        with_runs(made)
        if name == "run":
            made.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu or cuda")
    made = verb("compare", _compare, "two runs: what differs in spec and metrics")
    made.add_argument("first", metavar="RUN")
    made.add_argument("second", metavar="RUN")
    with_runs(made)
    made = verb("reproduce", _reproduce, "a paper's claims beside our own values")
    made.add_argument("study", metavar="STUDY")
    made.add_argument("--claim", metavar="ID", help="this claim alone, however long it takes")
    made.add_argument("--full", action="store_true", help="also claims that take more than half a minute")
    with_runs(made)
    with_runs(verb("tour", _tour, "every study on a toy input, from plan to run"))
    made = verb("sweep", _sweep, "one spec over many values; a rerun does only what is missing")
    on_spec(made, "a spec file or a study's name")
    with_runs(made)
    made = verb("traces", _traces, "public and synthetic workloads")
    made.add_argument("action", choices=("list", "fetch", "show"))
    made.add_argument("name", nargs="?", metavar="NAME")
    made = verb("profile", _profile, "measure this machine's kernels into cost tables; a rerun goes on")
    made.add_argument("kernels", nargs="*", metavar="KERNEL", help="kernel families or ops (default: all)")
    made.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="what to measure (default: cpu)")
    made.add_argument("--budget", default="5m", metavar="TIME", help="most time to spend, e.g. 90s, 5m (default: 5m)")
    made.add_argument("--profiles", default="profiles", metavar="FOLDER", help="where tables live (default: profiles)")
    made.add_argument("--report", action="store_true", help="write the page of rooflines of an existing folder")
    verb("bench", _bench, "run a study's benchmarks").add_argument("study", metavar="STUDY")
    return top


def _again(argv: Sequence[str] | None) -> str:
    """The command as it was typed, but for the folder of runs."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "--runs" in words:
        del words[words.index("--runs"):words.index("--runs") + 2]
    return f"wb {shlex.join(words)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``wb`` with ``argv`` (default: the process's own) and return its exit code."""
    args = parser().parse_args(argv)
    if argv is None:  # a command of its own: what it makes lives until it ends, so collecting early is time lost
        gc.set_threshold(100_000, 50, 50)
    try:
        code: int = args.function(args)
        sys.stdout.flush()
    except WorkbenchError as error:
        error.next_command = (error.next_command or f"wb {args.verb} --help").replace("wb …", _again(argv))
        say(f"wb {args.verb}: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say(f"wb {args.verb}: interrupted")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code
