"""Every notebook runs from its first cell to its last, at the small size that SMOKE=1 asks for."""

from pathlib import Path

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
def test_a_notebook_is_committed_without_outputs(path: Path) -> None:
    assert all(not cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells)
