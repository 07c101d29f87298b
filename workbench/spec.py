"""Spec files: TOML in, frozen values out, every fault reported at once.

``@spec`` makes a frozen, keyword-only dataclass that pydantic validates strictly (unknown keys are faults);
``about`` gives each field its one-line description, which feeds ``wb schema``.
pydantic is loaded only when something is validated, so that ``wb --help`` stays quick.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import re
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

from workbench.errors import SpecError, WorkbenchError, nearest

__all__ = ["about", "canonical_json", "content_id", "dump", "fields_of", "parse", "read_toml", "set_keys", "spec"]

T = TypeVar("T")


def about(text: str, *, default: Any = dataclasses.MISSING,
          default_factory: Callable[[], Any] | Any = dataclasses.MISSING) -> Any:
    """A dataclass field with a one-line description (its unit is in the field's name)."""
    metadata = {"about": text}
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(about, dataclasses.field))
def spec(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen value that goes to disk and back; unknown keys are faults."""
    cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, slots=True, kw_only=True)(cls)


@cache
def _adapter(cls: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def parse(cls: type[T], data: Any, *, where: str = "spec", next_command: str | None = None) -> T:
    """Validate ``data`` (mappings, lists, scalars) into ``cls``.

    Raises:
        SpecError: lists *all* faults, each with its key path, what is allowed, and the nearest known name.
    """
    from pydantic import ValidationError

    try:
        return _adapter(typing.cast(Any, cls)).validate_python(data)
    except ValidationError as error:
        faults = [_fault(cls, item) for item in _independent([dict(e) for e in error.errors()])]
    raise SpecError(
        f"{len(faults)} fault{'s' if len(faults) > 1 else ''}", faults=faults, where=where, next_command=next_command
    )


def dump(value: Any) -> Any:
    """The JSON-ready form of a spec value; ``parse(type(value), dump(value)) == value``."""
    return _adapter(typing.cast(Any, type(value))).dump_python(value, mode="json")


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no blanks; floats as Python prints them."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=True)


def content_id(value: Any) -> str:
    """First 12 hexadecimal digits of the sha256 of the value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:12]


def read_toml(path: Path | str) -> dict[str, Any]:
    """Read a TOML file; a missing file or broken syntax is a ``SpecError`` that says where."""
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path()
        names = sorted(p.name for p in folder.glob("*.toml"))
        close = nearest(path.name, names)
        raise SpecError(f"no such file: {path}", allowed=names[:6] or
                        ["a TOML file, or a study's name for its demo problem"],
                        hint=f"did you mean {folder / close}?" if close else None, next_command="wb list") from None
    except IsADirectoryError:
        raise SpecError(f"{path} is a folder, not a TOML file", next_command="wb list") from None
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"not valid TOML: {error}", where=str(path), hint=_faulty_line(path, str(error)),
                        next_command="wb schema STUDY") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"not valid TOML: {error}", where=str(path), allowed=["text in UTF-8"],
                        next_command="wb schema STUDY") from None


def _faulty_line(path: Path, message: str) -> str | None:
    """The line that a TOML error complains of."""
    found = re.search(r"at line (\d+)", message)
    if found is None:
        return "the file ends before a value does: look for a quote or bracket that is not closed"
    line = path.read_text(encoding="utf-8").splitlines()[int(found[1]) - 1].strip()
    return f"line {found[1]} reads: {line[:90]}"


def set_keys(data: dict[str, Any], assignments: typing.Iterable[str]) -> dict[str, Any]:
    """Apply ``--set a.b=value`` assignments (values in TOML syntax; bare words are strings) to a copy of ``data``."""
    result = copy.deepcopy(data)
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        if not sign or not key.strip():
            raise SpecError(f"--set wants key=value, not {assignment!r}", allowed=["--set budget_usd_per_h=15"],
                            next_command="wb schema STUDY")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *parents, last = key.strip().split(".")
        node: Any = result
        for part in parents:
            if isinstance(node, dict):
                node.setdefault(part, {})
            node = node[_slot(node, part, key)]
        node[_slot(node, last, key)] = value
    return result


def _slot(node: Any, part: str, key: str) -> str | int:
    """Where ``part`` of the key path points in ``node``: a table's key or a list's index."""
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise SpecError(f"--set {key}: {part!r} lies below a value that is neither a table nor a list",
                        next_command="wb schema STUDY")
    if not part.isdigit() or int(part) >= len(node):
        raise SpecError(f"--set {key}: {part!r} is not an index of a list of {len(node)}",
                        allowed=[str(k) for k in range(len(node))][:12], next_command="wb schema STUDY")
    return int(part)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FieldDoc:
    """One row of ``wb schema``."""

    path: str
    type: str
    default: str
    about: str


def fields_of(cls: Any, prefix: str = "") -> list[FieldDoc]:
    """Every field of a spec dataclass, nested ones with dotted paths (``[]`` for lists, ``<name>`` for tables)."""
    hints = typing.get_type_hints(cls)
    rows = []
    for f in dataclasses.fields(cls):
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required:
            default = "required"
        elif f.default is not dataclasses.MISSING:
            default = "absent" if f.default is None else repr(f.default)
        else:
            default = repr(f.default_factory()) if callable(f.default_factory) else ""
        path = f"{prefix}{f.name}"
        rows.append(FieldDoc(path=path, type=_type_name(hints[f.name]), default=default,
                             about=f.metadata.get("about", "")))
        for inner, suffix in _nested(hints[f.name]):
            rows.extend(fields_of(inner, f"{path}{suffix}."))
    return rows


def _nested(hint: Any) -> list[tuple[Any, str]]:
    """Spec dataclasses inside a type hint, with how a path goes through it."""
    if dataclasses.is_dataclass(hint):
        return [(hint, "")]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    suffix = ""
    if origin in (tuple, list):
        suffix = "[]"
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        suffix, args = ".<name>", args[1:]
    return [(cls, suffix + deeper) for a in args for cls, deeper in _nested(a)]


def _type_name(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " | ".join(repr(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type_name(a) for a in args if a is not type(None))
    if origin in (tuple, list):
        return f"list of {_type_name(args[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"table of {_type_name(args[1])}"
    return getattr(hint, "__name__", str(hint))


def _independent(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without complaints that a list is too short when the reason is that its entries are faulty themselves."""
    return [i for i in items if i["type"] != "too_short"
            or not any(len(o["loc"]) > len(i["loc"]) and o["loc"][:len(i["loc"])] == i["loc"] for o in items)]


def _fault(cls: Any, item: dict[str, Any]) -> WorkbenchError:
    """One pydantic error in the workbench's words."""
    loc, kind, context = item["loc"], item["type"], item.get("ctx", {})
    path = ".".join(str(part) for part in loc) or "(whole file)"
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _known_keys(cls, loc[:-1])
        close = nearest(str(loc[-1]), known)
        return WorkbenchError("unknown key", where=path, allowed=known,
                              hint=f"did you mean {close!r}?" if close else None)
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return WorkbenchError("required key is missing", where=path)
    if kind == "literal_error":
        allowed = [part.strip().strip("'") for part in
                   str(context.get("expected", "")).replace(" or ", ", ").split(",")]
        close = nearest(str(item["input"]), allowed)
        return WorkbenchError(f"{item['input']!r} is not one of the allowed values", where=path, allowed=allowed,
                              hint=f"did you mean {close!r}?" if close else None)
    if kind == "value_error":
        return WorkbenchError(str(context.get("error", item["msg"])), where=path)
    if kind in ("float_parsing", "int_parsing") and re.match(r"\s*[-+]?[\d.]", str(item["input"])):
        return WorkbenchError(f"{item['input']!r} is not a plain number", where=path,
                              allowed=["a number in the unit that the key's name ends in"],
                              hint=f"write {loc[-1]!s} = {_leading_number(item['input'])}, converted to that unit")
    shown = repr(item["input"])
    return WorkbenchError(f"{item['msg'][0].lower()}{item['msg'][1:]}; got {shown[:80]}", where=path)


def _leading_number(text: str) -> str:
    """The number that a quantity such as 30ms begins with."""
    found = re.match(r"\s*([-+]?\d*\.?\d*(?:e[-+]?\d+)?)", text)
    return found[1] if found else text


def _known_keys(cls: Any, loc: tuple[Any, ...]) -> list[str]:
    """Names of the fields of the dataclass that ``loc`` leads to."""
    candidates = [cls]
    for part in loc:
        following: list[Any] = []
        for c in candidates:
            if not dataclasses.is_dataclass(c):
                continue
            hints = typing.get_type_hints(c)
            if part in hints:
                following.extend(inner for inner, _ in _nested(hints[part]))
        candidates = following or candidates
    return sorted({f.name for c in candidates if dataclasses.is_dataclass(c) for f in dataclasses.fields(c)})
