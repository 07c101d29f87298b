"""Specs: every fault of a file is reported at once, and values survive the trip to disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import SpecError, nearest
from workbench.spec import about, canonical_json, content_id, dump, fields_of, parse, read_toml, set_keys, spec


@spec
class Device:
    price_usd_per_h: float = about("Rental price.")
    available: int = about("How many there are.", default=1)


@spec
class Toy:
    budget_usd_per_h: float = about("Most that may be spent.")
    objective: Literal["makespan", "cost"] = about("What to minimise.", default="makespan")
    devices: Mapping[str, Device] = about("What can be rented.", default_factory=dict)
    mixes: tuple[Device, ...] = about("Nested list.", default=())


def test_all_faults_are_reported_at_once_with_path_and_nearest_name() -> None:
    with pytest.raises(SpecError) as caught:
        parse(Toy, {"budget_usd_per_hour": 3, "objective": "makspan",
                    "devices": {"H100": {"price_usd_per_h": "dear", "availabel": 2}}}, where="toy.toml")
    text = str(caught.value)
    assert caught.value.exit_code == 2
    assert len(caught.value.faults) == 5
    assert "did you mean 'budget_usd_per_h'" in text
    assert "did you mean 'makespan'" in text
    assert "devices.H100.price_usd_per_h" in text
    assert "did you mean 'available'" in text
    assert text.startswith("toy.toml: 5 faults")


def test_nested_list_faults_name_their_index() -> None:
    with pytest.raises(SpecError, match=r"mixes\.1\.price_usd_per_h"):
        parse(Toy, {"budget_usd_per_h": 1, "mixes": [{"price_usd_per_h": 1}, {"price_usd_per_h": "x"}]})


@given(st.floats(allow_nan=False), st.sampled_from(["makespan", "cost"]),
       st.dictionaries(st.text(min_size=1, max_size=5), st.builds(
           lambda p, a: Device(price_usd_per_h=p, available=a), st.floats(0, 1e6), st.integers(0, 1000)), max_size=3))
def test_dump_then_parse_is_identity(budget: float, objective: str, devices: dict[str, Device]) -> None:
    value = Toy(budget_usd_per_h=budget, objective=objective, devices=devices)  # type: ignore[arg-type]
    if budget not in (float("inf"), float("-inf")):  # JSON has no infinity
        assert parse(Toy, dump(value)) == value


def test_content_id_ignores_key_order_but_not_values() -> None:
    assert content_id({"a": 1, "b": [1, 2]}) == content_id({"b": [1, 2], "a": 1})
    assert content_id({"a": 1}) != content_id({"a": 2})
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'


def test_schema_lists_nested_fields_with_paths_types_and_descriptions() -> None:
    rows = {f.path: f for f in fields_of(Toy)}
    assert rows["devices.<name>.price_usd_per_h"].about == "Rental price."
    assert rows["mixes[].available"].default == "1"
    assert rows["budget_usd_per_h"].default == "required"
    assert rows["objective"].type == "'makespan' | 'cost'"


def test_set_keys_reaches_tables_and_lists_and_leaves_the_original() -> None:
    data = {"a": {"b": 1}, "l": [{"x": 1}, {"x": 2}]}
    changed = set_keys(data, ["a.b=2.5", "l.1.x=[1, 2]", "new.key=word", "flag=true"])
    assert changed == {"a": {"b": 2.5}, "l": [{"x": 1}, {"x": [1, 2]}], "new": {"key": "word"}, "flag": True}
    assert data == {"a": {"b": 1}, "l": [{"x": 1}, {"x": 2}]}
    for bad in ("nonsense", "l.7.x=1", "a.b.c=1"):
        with pytest.raises(SpecError):
            set_keys(data, [bad])


def test_unreadable_toml_says_where(tmp_path) -> None:  # type: ignore[no-untyped-def]
    broken = tmp_path / "broken.toml"
    broken.write_text("a = [1,\nb = 2")
    with pytest.raises(SpecError, match="line 2"):
        read_toml(broken)
    (tmp_path / "placement.toml").write_text("")
    with pytest.raises(SpecError, match=r"placement\.toml"):
        read_toml(tmp_path / "placment.toml")


def test_nearest_ignores_case_and_gives_up_on_strangers() -> None:
    assert nearest("h100-sxm", ["H100-SXM", "A100-SXM"]) == "H100-SXM"
    assert nearest("zzz", ["H100-SXM"]) is None
