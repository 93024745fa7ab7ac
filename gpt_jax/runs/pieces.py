"""The code of what a configuration uses from outside the package: attentions that a notebook registers, variants and
tasks that a script defines, with the functions, classes and constants that they use.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import importlib.metadata
import inspect
import sys
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from gpt_jax.config.code import PACKAGE, digest, meaning

# The libraries whose versions decide numbers.
NUMERIC = ("jax", "jaxlib", "flax", "optax", "grain", "numpy", "tokenizers")
PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))
# Methods that dataclasses write, with no file of their own; their fields say all that they do.
GENERATED = ("init", "repr", "eq", "hash", "setattr", "delattr", "lt", "le", "gt", "ge", "replace")


def pieces(config: Any, modules: Iterable[str]) -> dict[str, str]:
    """Name → hash of the code of each function and class from outside that a configuration uses.

    They are the types in it, and what the tables of `modules` (dicts such as `ATTENTIONS`) hold for its
    types and its words. A library that they use counts by its version.
    """
    types_, words = set(_types(config)), set(_words(config))
    walk = _Walk()
    for kind in types_:
        walk.visit(kind)
    for name in modules:
        if name in sys.modules:
            for table in [v for v in vars(sys.modules[name]).values() if isinstance(v, dict)]:
                for key, value in table.items():
                    if (isinstance(key, type) and key in types_) or (isinstance(key, str) and key in words):
                        walk.visit(value)
    return {name: digest("\n".join(sorted(texts))) for name, texts in sorted(walk.texts.items())}


def _types(value: Any) -> Iterator[type]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield type(value)
        for field in dataclasses.fields(value):
            yield from _types(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from _types(item)


def _words(value: Any) -> Iterator[str]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _words(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from _words(item)
    elif isinstance(value, str):
        yield value


@functools.cache
def _library(module: str) -> str | None:
    """The distribution that an installed module belongs to; None for code of the user's own."""
    top = module.split(".")[0]
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    if top == "__main__" or ("site-packages" not in file and "dist-packages" not in file):
        return None
    return next(iter(importlib.metadata.packages_distributions().get(top, [top])))


class _Walk:
    """Collects the code of objects from outside and of what they use; `texts` has it by qualified name."""

    def __init__(self) -> None:
        self.texts: dict[str, set[str]] = {}
        self._seen: dict[int, Any] = {}  # holds the objects, so that no id is given to another
        self._open: set[int] = set()  # what is being visited: it may hold itself

    def visit(self, value: Any) -> str:
        """Adds the code behind `value`; returns a text that stands for it where it is used."""
        if isinstance(value, PLAIN):
            return repr(value)
        if id(value) in self._open:
            return "…"
        self._open.add(id(value))
        try:
            return self._visit(value)
        finally:
            self._open.remove(id(value))

    def _visit(self, value: Any) -> str:
        if isinstance(value, np.ndarray | jax.Array) and not isinstance(value, jax.core.Tracer):
            return digest(repr((value.shape, str(value.dtype), np.asarray(value).tobytes())))
        if isinstance(value, functools.partial):
            return " ".join(map(self.visit, (value.func, value.args, value.keywords)))
        if isinstance(value, list | tuple):
            return " ".join(map(self.visit, value))
        if isinstance(value, set | frozenset):
            return " ".join(sorted(map(self.visit, value)))
        if isinstance(value, Mapping):
            return " ".join(f"{self.visit(key)}: {self.visit(item)}" for key, item in value.items())
        if isinstance(value, types.ModuleType):
            return value.__name__
        if isinstance(value, types.MethodType):
            value = value.__func__
        if not isinstance(value, type) and callable(value):
            value = inspect.unwrap(value)
        kind = value if isinstance(value, type | types.FunctionType) else type(value)
        self._code(kind)
        if kind is not value and dataclasses.is_dataclass(value):
            return " ".join(self.visit(getattr(value, f.name)) for f in dataclasses.fields(value))
        return f"{kind.__qualname__} {value.name}" if isinstance(value, enum.Enum) else kind.__qualname__

    def _code(self, kind: Any) -> None:
        if id(kind) in self._seen or not self._is_outside(kind.__module__):
            return
        self._seen[id(kind)] = kind
        text = self._class(kind) if isinstance(kind, type) else self._function(kind)
        self.texts.setdefault(kind.__qualname__, set()).add(text)

    def _is_outside(self, module: str | None) -> bool:
        """Whether a module is the user's own; one of another installed library adds that library's version."""
        top = (module or PACKAGE).split(".")[0]  # some of JAX's functions have no module
        if top == PACKAGE or top in sys.stdlib_module_names:
            return False
        library = _library(str(module))
        if library is not None and library not in NUMERIC:
            self.texts.setdefault(library, set()).add(importlib.metadata.version(library))
        return library is None

    def _class(self, kind: type) -> str:
        parts = [kind.__qualname__.split(".")[-1], *(self.visit(base) for base in kind.__bases__)]
        if dataclasses.is_dataclass(kind):
            for field in dataclasses.fields(kind):
                parts.append(f"{field.name}: {field.type} = {self.visit([field.default, field.default_factory])}")
        for name, value in sorted(vars(kind).items()):
            members = [getattr(value, wrapped, None) for wrapped in ("__func__", "fget", "fset", "func")]
            for member in [m for m in members if m is not None] or [value]:
                member = inspect.unwrap(member) if callable(member) and not isinstance(member, type) else member
                if not isinstance(member, types.FunctionType):
                    parts += [] if name.startswith("__") else [f"{name} = {self.visit(member)}"]
                elif member.__module__ != kind.__module__:
                    parts.append(f"{name} = {self.visit(member)}")
                elif member.__code__.co_filename != "<string>" or name.strip("_") not in GENERATED:
                    parts.append(f"{name} {self._function(member)}")
        return "\n".join(parts)

    def _function(self, function: types.FunctionType) -> str:
        """The source where there is any, else the bytecode, and the values of the names that it uses."""
        code = function.__code__
        try:
            parts = [meaning(ast.parse(textwrap.dedent(inspect.getsource(function))))]
        except (OSError, TypeError, SyntaxError):
            parts = [_bytecode(code)]
        parts += [self.visit(v) for v in (function.__defaults__ or (), function.__kwdefaults__ or {})]
        names = set(_names(code))
        for cell in function.__closure__ or ():
            try:
                parts.append(self.visit(cell.cell_contents))
            except ValueError:  # a name that nothing is bound to yet
                continue
        for name in sorted(names & set(function.__globals__)):
            value = function.__globals__[name]
            parts.append(f"{name} = {self.visit(value)}")
            if isinstance(value, types.ModuleType) and self._is_outside(value.__name__):
                parts += [f"{n} = {self.visit(vars(value)[n])}" for n in sorted(names & set(vars(value)))]
        return "\n".join(parts)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _bytecode(code: types.CodeType) -> str:
    constants = [_bytecode(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return repr((code.co_code, code.co_names, code.co_varnames, constants))
