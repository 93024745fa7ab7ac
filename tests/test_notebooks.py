"""Every notebook runs from its first cell to its last, at the small size that SMOKE=1 asks for."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LIMIT_SECONDS = 90  # of the kernel's own processor time: a busy machine is no fault of the notebook's
FAST, *SLOW = NOTEBOOKS


@pytest.mark.parametrize(
    "path",
    [pytest.param(FAST, id=FAST.stem), *(pytest.param(path, id=path.stem, marks=pytest.mark.slow) for path in SLOW)],
)
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


def first_cell(path: Path) -> str:
    return next(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")


def test_every_notebook_starts_with_the_same_cell() -> None:
    for path in NOTEBOOKS:
        assert first_cell(path) == first_cell(NOTEBOOKS[0]), f"{path.name} differs from {NOTEBOOKS[0].name}"


def test_the_first_cell_upgrades_jax_only_where_the_runtimes_own_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip's constraints keep numpy and jax; where no release fits, jax may be newer, with its accelerator's plugin."""
    place: dict[str, Any] = {}
    exec(first_cell(NOTEBOOKS[0]).split("\n\n\nif ")[0], place)
    found = {"jax": "0.7.2", "jax_cuda12_plugin": "0.7.2", "NumPy": "2.1.3", "torch": "2.11.0+cu128"}
    found = [SimpleNamespace(name=name, version=version) for name, version in found.items()]
    monkeypatch.setattr("importlib.metadata.distributions", lambda: found)
    calls: list[tuple[list[str], set[str]]] = []
    statuses: list[int] = []

    def pip(command: list[str], **options: Any) -> SimpleNamespace:
        constraints = set(Path(command[command.index("-c") + 1]).read_text().split())
        calls.append((command[command.index("-c") + 2 :], constraints))
        return SimpleNamespace(returncode=statuses.pop(0), stderr="no release fits")

    monkeypatch.setattr("subprocess.run", pip)
    kept = (["gpt_jax"], {"jax==0.7.2", "jax-cuda12-plugin==0.7.2", "numpy==2.1.3"})
    newer = (["gpt_jax", "jax[cuda12]"], {"jax>=0.7.2", "jax-cuda12-plugin>=0.7.2", "numpy==2.1.3"})
    for ends, expected in (([0], [kept]), ([1, 0], [kept, newer])):
        calls.clear()
        statuses[:] = ends
        place["install"]("gpt_jax")
        assert calls == expected
    statuses[:] = [1, 1]
    with pytest.raises(SystemExit, match="no release fits"):
        place["install"]("gpt_jax")
