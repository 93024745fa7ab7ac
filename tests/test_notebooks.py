"""Every notebook runs from its first cell to its last, at the small size that SMOKE=1 asks for."""

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LIMIT_SECONDS = 90  # of the kernel's own processor time: a busy machine is no fault of the notebook's


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_runs_at_its_small_size(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOKE", "1")
    monkeypatch.setenv("GPT_JAX_RUNS", str(tmp_path))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own, which puts pictures below their cell
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("import time; print(time.process_time())"))
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    seconds = float(notebook.cells[-1].outputs[0].text)
    assert seconds < LIMIT_SECONDS
    assert any(
        "image/png" in output.get("data", {}) for cell in notebook.cells[:-1] for output in cell.get("outputs", [])
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_is_valid_and_committed_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)  # since then each cell has an id
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells), (
        f"clear them: jupyter nbconvert --clear-output --inplace notebooks/{path.name}"
    )


def test_every_notebook_is_the_text_beside_it() -> None:
    assert [path.with_suffix(".py") for path in NOTEBOOKS] == sorted(NOTEBOOKS[0].parent.glob("*.py"))
    for path in NOTEBOOKS:
        text, notebook = jupytext.read(path.with_suffix(".py")), nbformat.read(path, as_version=4)
        pair = [[(cell.cell_type, cell.source) for cell in one.cells] for one in (text, notebook)]
        assert pair[0] == pair[1], f"edit the .py, then: touch notebooks/*.py; jupytext --sync notebooks/{path.stem}.py"


def test_every_notebook_starts_with_the_same_cell() -> None:
    first = [next(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code") for path in NOTEBOOKS]
    for path, source in zip(NOTEBOOKS, first, strict=True):
        assert source == first[0], f"the first code cell of {path.name} is not that of {NOTEBOOKS[0].name}"
