"""Every notebook runs as committed, in its small form, and its stored outputs belong to its source."""

from pathlib import Path

import pytest

NOTEBOOKS = sorted(p.stem for p in (Path(__file__).parents[1] / "notebooks").glob("*.py"))
HERE = Path(__file__).parents[1] / "notebooks"


def test_there_is_a_tour_and_one_notebook_for_each_study():
    from workbench.study import names

    assert {"00_tour", *names()} == set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_outputs_belong_to_the_source(name):
    jupytext, nbformat = (pytest.importorskip(m, reason="extra notebooks") for m in ("jupytext", "nbformat"))
    source = jupytext.read(HERE / f"{name}.py")
    stored = nbformat.read(HERE / f"{name}.ipynb", as_version=4)
    assert [c.source for c in stored.cells] == [c.source for c in source.cells]
    code = [c for c in stored.cells if c.cell_type == "code"]
    assert any(c.outputs for c in code)
    assert not [o for c in code for o in c.outputs if o.output_type == "error"]
    assert (HERE / f"{name}.ipynb").stat().st_size < 200_000


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_cell_runs(name, tmp_path):
    jupytext, nbclient = (pytest.importorskip(m, reason="extra notebooks") for m in ("jupytext", "nbclient"))
    pytest.importorskip("ipykernel", reason="extra notebooks")
    notebook = jupytext.read(HERE / f"{name}.py")
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3",
                                     resources={"metadata": {"path": str(HERE)}})
    client.execute()
    assert all(c.execution_count for c in notebook.cells if c.cell_type == "code")
