"""What the package says of itself holds: declared imports that point down, exact versions, the lines of README."""

import ast
import importlib.metadata
import itertools
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("gpt_jax/**/*.py"), *ROOT.glob("experiments/**/*.py")])
# The order of DESIGN section 2. An import points to the same room or to one of a lower level.

LEVELS = {
    "config": 0,
    "pages": 0,
    "data": 1,
    "model": 1,
    "training": 2,
    "decoding": 2,
    "interop": 2,
    "analysis": 3,
    "runs": 4,
    "ablation": 5,
    "experiments": 6,
}
STRANGERS = {("model", "data"), ("data", "model"), ("pages", "config"), ("config", "pages")}


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}:{node.lineno} imports relatively; name the package"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(dotted: str) -> str | None:
    parts = dotted.split(".")
    name = parts[1] if parts[0] == "gpt_jax" and len(parts) > 1 else parts[0]
    return name if name in LEVELS else None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_the_list(path: Path) -> None:
    here = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if here is None:  # gpt_jax/__init__.py names what is public, from every room but the command line.
        assert "experiments" not in map(room, imported_modules(path))
        return
    for module in imported_modules(path):
        there = room(module)
        if there is not None:
            assert LEVELS[there] <= LEVELS[here] and (here, there) not in STRANGERS, f"{here} imports {module}"


def test_every_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = [line for extra in ("wandb", "plan", "eval") for line in project["optional-dependencies"][extra]]
    declared = {canonical(line) for line in [*project["dependencies"], *optional]} | {"jaxlib"}
    distributions = importlib.metadata.packages_distributions()
    for path in SOURCES:
        for module in {name.split(".")[0] for name in imported_modules(path)}:
            if module in sys.stdlib_module_names or module in ("gpt_jax", "experiments", "configs"):
                continue
            homes = {canonical(name) for name in distributions.get(module, [module])}
            assert homes & declared, f"{path.relative_to(ROOT)} imports {module}, which pyproject.toml does not declare"


def canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def test_constraints_are_names_and_exact_versions_only() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) > 50
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==[\w.+]+(; python_version (<|>=) '3\.\d+')?", line), line


def test_constraints_hold_every_direct_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
    held = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {canonical(line) for line in direct} - {"gpt-jax"} <= held


def test_readme_has_one_line_to_train_and_one_to_test() -> None:
    lines = re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert len(lines) == 2
    assert "-m experiments.train --config=configs/quickstart.py" in lines[0]
    assert ".[test]" in lines[1] and "-m pytest" in lines[1]
    assert all("-c constraints.txt" in line for line in lines)
