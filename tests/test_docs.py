"""What the documents say is so: commands parse and the cheap ones run, files and links exist, examples are reproduced.

Every document is read as it stands; nothing here knows its sections. In fenced blocks a line that begins with ``wb``,
``make`` or ``python -m`` is a command (two blanks or ``#`` end it); in running text such a span in backquotes is one.
A fenced block with a ruled table is an example of what the last command before it prints.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from workbench import pages, study
from workbench.cli import parser
from workbench.job import resolve
from workbench.spec import set_keys

Wb = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "BENCHMARKS.md", "workbench/DESIGN.md")]
ROOMS = ("workbench", "traces", "planners", "executors", "profilers", "tests", "notebooks")
CHEAP = {"doctor", "list", "schema"}
TOLERANCE = 0.05
# Columns of examples that depend on the machine, and so are not compared.
OF_THE_MACHINE = re.compile(r"second|search|measured|planning|wall|busy|minutes")
PLACEHOLDER = re.compile(r"^[A-Z][A-Z_=/.…]*$")
NUMBER = re.compile(r"[-−+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its lines, and where it stands."""

    document: Path
    line: int
    language: str
    lines: tuple[str, ...]

    @property
    def is_example(self) -> bool:
        return any(ruled(line) for line in self.lines)


@dataclass(frozen=True)
class Command:
    """A command as a document gives it; ``whole`` when it stands in a block, where it must be complete."""

    place: str
    text: str
    whole: bool

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def ruled(line: str) -> bool:
    return bool(re.fullmatch(r"-{3,}(  -{2,})+", line.strip()))


def blocks(document: Path) -> Iterator[Block]:
    start, language, lines = None, "", []
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"\s*```(\w*)", line)
        if fence and start is None:
            start, language, lines = number, fence[1], []
        elif fence:
            assert start is not None
            yield Block(document, start, language, tuple(lines))
            start = None
        elif start is not None:
            lines.append(line)
    assert start is None, f"{document.name}:{start}: a block that never ends"


def prose(document: Path) -> Iterator[tuple[int, str]]:
    """Lines outside fenced blocks."""
    inside = False
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        if re.match(r"\s*```", line):
            inside = not inside
        elif not inside:
            yield number, line


def commands(document: Path) -> Iterator[Command]:
    name = document.relative_to(ROOT)
    for block in blocks(document):
        for offset, line in enumerate("\n".join(block.lines).replace("\\\n", " ").splitlines(), 1):
            line = line.strip().removeprefix("$ ")
            if block.language in ("", "sh", "bash", "console", "shell") and not block.is_example:
                yield from typed(f"{name}:{block.line + offset}", re.split(r"\s{2,}|\s#", line)[0], whole=True)
    for number, line in prose(document):
        for span in re.findall(r"`([^`]+)`", line):
            yield from typed(f"{name}:{number}", span, whole=False)


def typed(place: str, text: str, *, whole: bool) -> Iterator[Command]:
    """The commands in ``text``: ``a|b|c`` stands for each of them, ``&&`` joins them, settings may precede them."""
    if "&&" in text:
        for part in text.split("&&"):
            yield from typed(place, part, whole=whole)
        return
    text = re.sub(r"^(\w+=\S*\s+)+", "", text.strip())
    if not re.match(r"(wb|make|python -m|pip install)(\s|$)", text) or text in ("wb", "make"):
        return
    choice = re.search(r"\S+(\|\S+)+", text)
    for one in choice[0].split("|") if choice else [""]:
        yield Command(place, text.replace(choice[0], one) if choice else text, whole)


ALL = [command for document in DOCUMENTS for command in commands(document)]
TOLD = [c for c in ALL if c.words[0] == "wb"]


def identify(command: Command) -> str:
    return f"{command.place} {command.text}"


def readers_spec(document: Path) -> dict[str, Any] | None:
    """The spec that a document shows, for commands on a file of the reader's own."""
    for block in blocks(document):
        if block.language == "toml" and any(line.startswith("study") for line in block.lines):
            return tomllib.loads("\n".join(block.lines))
    return None


def test_documents_give_commands() -> None:
    assert len(TOLD) >= 10
    assert any(c.words[0] == "make" for c in ALL)


@pytest.mark.parametrize("command", TOLD, ids=identify)
def test_wb_understands_every_command(command: Command) -> None:
    verbs = next(a for a in parser()._actions if hasattr(a, "choices") and a.choices and "plan" in a.choices).choices
    assert verbs is not None
    words = command.words[1:]
    assert words[0].startswith("-") or words[0] in verbs, f"{command.place}: no verb {words[0]!r}"
    if not command.whole and len(words) == 1:
        return  # a verb that is only spoken of
    try:
        args = parser().parse_args(words)
    except SystemExit as left:
        assert left.code == 0, f"{command.place}: wb does not understand {command.text!r}"
        return
    named = getattr(args, "study", None)
    if named is not None and not PLACEHOLDER.match(named):
        assert named in study.names(), command.place
    asked = getattr(args, "spec", None)
    if asked is not None and not PLACEHOLDER.match(asked):
        understood_spec(command, asked, args.set)


def understood_spec(command: Command, asked: str, assignments: list[str]) -> None:
    """The spec is a study, a file of the checkout, or the one the document shows; ``--set`` finds its keys there."""
    document = ROOT / command.place.rpartition(":")[0]
    if asked in study.names():
        data: dict[str, Any] | None = tomllib.loads(study.load(asked).demo_spec.read_text())
    elif (ROOT / asked).exists():
        data = tomllib.loads((ROOT / asked).read_text()) if asked.endswith(".toml") else None
    else:
        data = readers_spec(document)
        assert data is not None, f"{command.place}: {asked} is neither here nor shown in the document"
    changes = [a for a in assignments if not PLACEHOLDER.match(a)]
    if data is not None:
        resolve(set_keys(data, changes), asked)


@pytest.mark.parametrize("command", [c for c in ALL if c.words[0] != "wb"], ids=identify)
def test_targets_modules_and_extras_exist(command: Command) -> None:
    words = command.words
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert [w for w in words[1:] if "=" not in w and w not in targets] == []
    elif words[0] == "python":
        assert importlib.util.find_spec(words[2]) is not None or PLACEHOLDER.match(words[2])
    else:
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for extras in re.findall(r"\[([\w,-]+)\]", command.text):
            assert set(extras.split(",")) <= set(known), command.place


@pytest.mark.parametrize("command", [c for c in TOLD if c.whole and (
    c.words[1] in CHEAP or c.words[1:3] == ["traces", "list"])], ids=identify)
def test_cheap_commands_run(command: Command, wb: Wb) -> None:
    code, out, err = wb(*command.words[1:])
    assert code == 0, err
    assert out.strip()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_specs_that_are_shown_resolve(document: Path) -> None:
    for block in blocks(document):
        if block.language == "toml":
            data = tomllib.loads("\n".join(block.lines))
            if "study" in data:
                resolve(data, f"{document.name}:{block.line}")


# ------------------------------------------------------------------------------------------------ files, links, names


def spans(document: Path) -> Iterator[tuple[int, str]]:
    return ((number, span) for number, line in prose(document) for span in re.findall(r"`([^`]+)`", line))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_files_that_are_named_exist(document: Path) -> None:
    absent = []
    here = {p.name for room in ROOMS for p in (ROOT / room).rglob("*.*")} | {p.name for p in ROOT.iterdir()}
    for number, span in spans(document):
        if re.search(r"[<>*{}\s…]|\bX\b", span):
            continue
        if span.split("/")[0] in ROOMS and "/" in span and not (ROOT / span).exists():
            # A module may be named without its ending.
            if not (ROOT / f"{span}.py").exists():
                absent.append((number, span))
        elif re.fullmatch(r"[\w-]+\.(py|md)", span) and span not in here:
            absent.append((number, span))
    assert absent == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_names_of_modules_and_functions_exist(document: Path) -> None:
    absent = []
    for number, span in spans(document):
        if re.fullmatch(rf"({'|'.join(ROOMS)})(\.\w+)+", span) and not span.endswith(".X"):
            parts, found = span.split("."), None
            for k in range(len(parts), 0, -1):
                try:
                    found = importlib.import_module(".".join(parts[:k]))
                except ModuleNotFoundError:
                    continue
                break
            rest = parts[k:]
            if found is None or (rest and not hasattr(found, rest[0])):
                absent.append((number, span))
    assert absent == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_links_inside_the_checkout_resolve(document: Path) -> None:
    dead = []
    for number, line in prose(document):
        for target in re.findall(r"\]\(([^)\s]+)\)", line):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (document.parent / path).resolve() if path else document
            if not file.exists() or (anchor and anchor not in anchors(file)):
                dead.append((number, target))
    assert dead == []


def anchors(document: Path) -> set[str]:
    """Fragments of a document's headings, as forges make them."""
    heads = (re.match(r"#+\s+(.*)", line) for _, line in prose(document))
    return {re.sub(r"[^\w\- ]", "", head[1].strip().lower()).replace(" ", "-") for head in heads if head}


# --------------------------------------------------------------------------------------------------------- examples


def examples() -> list[tuple[str, str, Block]]:
    """(place, command, block): each block with a ruled table, and the last command before it."""
    found = []
    for document in DOCUMENTS:
        given = list(commands(document))
        for block in blocks(document):
            before = [c for c in given if int(c.place.rpartition(":")[2]) < block.line and c.words[0] in ("wb", "make")]
            first = next((line for line in block.lines if line.startswith("$ ")), None)
            last = max(before, key=lambda c: int(c.place.rpartition(":")[2]), default=None)
            if block.is_example and (first or last):
                found.append((f"{document.name}:{block.line}", first.removeprefix("$ ") if first else last.text, block))
    return found


def as_wb(command: str) -> list[str]:
    """The arguments of ``wb`` behind a command, through the Makefile where it is one of its targets."""
    words = shlex.split(command)
    if words[0] == "make":
        recipe = re.search(rf"^{words[1]}:.*\n\t\$\(WB\) (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return shlex.split(recipe[1]) if recipe else []
    return words[1:]


def tables(text: str) -> Iterator[dict[tuple[str, str], str]]:
    """Cells of each ruled table by (first cell of the row, name of the column)."""
    lines = text.splitlines()
    for k, line in enumerate(lines):
        if not ruled(line) or k == 0:
            continue
        edges = [m.span() for m in re.finditer(r"-+", line)]
        names = [lines[k - 1][a:b].strip() for a, b in edges]
        cells = {}
        for row in lines[k + 1:]:
            if not row.strip() or row.strip() == "…":
                break
            values = [row[a:b if i + 1 < len(edges) else None].strip() for i, (a, b) in enumerate(edges)]
            cells |= {(values[0], name): value for name, value in zip(names[1:], values[1:], strict=True)}
        yield cells


def same(ours: str, told: str) -> bool:
    """Texts that are equal but for numbers that lie within the tolerance of each other."""
    return NUMBER.sub("#", ours) == NUMBER.sub("#", told) and all(map(close, numbers(ours), numbers(told)))


def numbers(text: str) -> list[float]:
    return [float(n.replace(",", "").replace("−", "-")) for n in NUMBER.findall(text)]


def close(a: float, b: float) -> bool:
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b))


def printed(paragraph: str, out: str) -> bool:
    """Whether ``out`` holds the paragraph (to where it breaks off with …), whatever its numbers; they must be close."""
    said = " ".join(paragraph.partition("…")[0].split()).removesuffix("…").strip()
    pattern = f"({NUMBER.pattern})".join(map(re.escape, NUMBER.split(said)))
    found = re.search(pattern, " ".join(out.split()))
    return found is not None and same(found[0], said)


def test_numbers_are_compared_loosely_and_words_exactly() -> None:
    assert same("8 H100 at 827.7", "8 H100 at 830.0")
    assert not same("8 H100 at 827.7", "8 H100 at 900.0")
    assert not same("8 H100", "8 A100")
    assert printed("Rent 8 H100 for 29.14 $/h. They\nserve …", "Well. Rent 8 H100 for 29.5 $/h. They serve 7.")
    assert not printed("Rent 8 H100 for 29.14 $/h", "Rent 8 H100 for 35 $/h")
    (cells,) = tables("name    value  GPUs\n------  -----  --------\nthis p      1  8 H100 + 2 A\n\nrest")
    assert cells == {("this p", "value"): "1", ("this p", "GPUs"): "8 H100 + 2 A"}


@pytest.mark.parametrize(("place", "command", "block"), examples(), ids=[f"{p} {c}" for p, c, _ in examples()])
def test_example_tables_are_what_the_command_prints(
        place: str, command: str, block: Block, wb: Wb, monkeypatch: pytest.MonkeyPatch) -> None:
    told = list(tables("\n".join(block.lines)))
    assert told, place
    arguments = as_wb(command)
    assert arguments, f"{place}: what prints this? {command!r} is no command of ours"
    # The page itself is tested elsewhere; here it would only take time.
    monkeypatch.setattr(pages, "write_page", lambda job, folder, plan: folder.path / "report.html")
    code, out, err = wb(*arguments)
    if code == 4:
        pytest.skip(f"the cost tables of this example are not installed: {err}")
    assert code == 0, err
    example = "\n".join(block.lines)
    if ("synthetic" in out) != ("synthetic" in example) and "Demand" in example:
        pytest.skip("the example is of the public trace; wb traces fetch, or WB_DATA_MIRROR, makes it comparable")
    ours = {key: value for cells in tables(out) for key, value in cells.items()}
    wrong = [(key, value, ours.get(key)) for cells in told for key, value in cells.items()
             if not OF_THE_MACHINE.search(" ".join(key)) and not (key in ours and same(ours[key], value))]
    assert wrong == [], f"{place}: (row, column), told, printed"
    paragraphs = [part for part in re.split(r"\n\s*\n", example) if not any(ruled(k) for k in part.splitlines())]
    # How long a search took is the machine's affair.
    assert [p for p in paragraphs if not printed(re.sub(r"\s+in [\d.]+ s$", "", p), out)] == [], place
