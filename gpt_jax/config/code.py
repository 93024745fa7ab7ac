"""Hashes of what this package's code does: files that differ in comments, docstrings, layout or the messages of errors
alone have equal ones.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "gpt_jax"
ROOT = Path(__file__).resolve().parents[1]


def code_hashes(*roots: str) -> dict[str, str]:
    """Module → hash, for the modules of this package that `roots` import, directly or through others, and for `roots`.

    A root is a dotted module or package; a package stands for all modules below it. The package's own `__init__` is
    left out: it names what is public and computes nothing.
    """
    return dict(_code_hashes(roots, ROOT))


@functools.cache
def _code_hashes(roots: tuple[str, ...], package: Path) -> dict[str, str]:
    files = _modules(package)
    waiting = [name for name in files for root in roots if name == root or name.startswith(root + ".")]
    hashes: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        if name not in hashes:
            imported, hashes[name] = _read(files[name].read_text("utf-8"))
            waiting += (other for other in imported if other in files)
    return dict(sorted(hashes.items()))


@functools.cache  # the modules that one root needs are mostly those of the others
def _read(source: str) -> tuple[frozenset[str], str]:
    """The dotted names that a module imports, and the hash of what it does."""
    tree = ast.parse(source)
    imported = frozenset(_imported(tree))  # before the tree is changed
    return imported, digest(meaning(tree))


def _modules(package: Path) -> dict[str, Path]:
    """Dotted name → file of every module but the package's `__init__`."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        name = ".".join((PACKAGE, *(parts[:-1] if parts[-1] == "__init__" else parts)))
        if name != PACKAGE:
            found[name] = file
    return found


def _imported(tree: ast.AST) -> Iterator[str]:
    """The dotted names that an import anywhere in `tree` could mean a module by."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


class _Meaning(ast.NodeTransformer):
    """Drops docstrings and the messages of errors."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return ast.Pass() if is_text else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.Raise(exc=node.exc.func if isinstance(node.exc, ast.Call) else node.exc, cause=None)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        return ast.Assert(test=node.test, msg=None)


def meaning(tree: ast.AST) -> str:
    """The code of `tree` in one layout, without comments, docstrings and the messages of errors. Changes the tree."""
    text = ast.unparse(ast.fix_missing_locations(_Meaning().visit(tree)))
    return "\n".join(line for line in text.split("\n") if line.strip() != "pass")


def digest(text: str) -> str:
    """The first 16 hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
