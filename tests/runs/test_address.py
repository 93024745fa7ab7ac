"""A run's address changes with each thing that decides its numbers, and with nothing else.

Each test takes the address of one tiny run, changes one thing, and takes it again. Edits of the package's own files are
made in a copy of it; nothing here trains but one run, whose content is what another begins with.
"""

import dataclasses
import linecache
import shutil
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from rich.console import Console

from gpt_jax.config import (
    AttentionConfig,
    BlockConfig,
    Checkpoint,
    Config,
    Copy,
    DataConfig,
    LogSpikes,
    Mlp,
    SkipSpikes,
    Watchdog,
)
from gpt_jax.config import code as codes
from gpt_jax.config.code import code_hashes
from gpt_jax.model.mlp import ACTIVATIONS
from gpt_jax.model.registry import ATTENTIONS
from gpt_jax.runs.address import Address, base_content, changed_parts, run_address
from gpt_jax.runs.train import train
from tests.tiny import tiny_config


def address(config: Config | None = None, base: str | None = None) -> Address:
    config = tiny_config() if config is None else config
    return run_address(dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=9)), "data", base)


def said(before: Address, after: Address) -> list[str]:
    assert before.hash != after.hash
    return changed_parts(before.parts, after.parts)


# ── the package's own code ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package whose files a test may edit: addresses are taken of its code."""
    shutil.copytree(codes.ROOT, tmp_path / "gpt_jax", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(codes, "ROOT", tmp_path / "gpt_jax")
    return tmp_path / "gpt_jax"


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    codes._code_hashes.cache_clear()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("runs/display.py", "tokens/s", "tokens a second"),  # the progress bar
        ("runs/address.py", "DECIDING = ", "# what decides\nDECIDING = "),
        ("ablation/verdict.py", "def ", "def new_"),
        ("decoding/generate.py", "import jax\n", "import jax\n\nOTHER = 1\n"),
        ("model/norm.py", '"""', '"""Reworded. '),
        ("model/norm.py", "import annotations\n", "import annotations\n\n# A comment\n\n"),
        ("config/checks.py", "raise ConfigError(message)", 'raise ConfigError("reworded")'),
    ],
)
def test_what_decides_no_number_keeps_the_address(package: Path, file: str, old: str, new: str) -> None:
    before = address()
    edit(package / file, old, new)
    assert address() == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("model/norm.py", "jnp.float32", "jnp.bfloat16"),
        ("config/training.py", "eps: float = ", "eps: float = 1 + "),
        ("data/task.py", "POWER = 0.01", "POWER = 0.02"),
        ("training/loss.py", "jnp.float32", "jnp.bfloat16"),
    ],
)
def test_code_that_decides_changes_it_and_is_named(package: Path, file: str, old: str, new: str) -> None:
    before = address()
    edit(package / file, old, new)
    assert said(before, address()) == [f"code of {file.removesuffix('.py')}"]


def test_the_code_is_what_training_imports() -> None:
    """Computed from the imports: every package below runs/, and none above or beside."""
    found = code_hashes("gpt_jax.training")
    packages = {name.split(".")[1] for name in found}
    assert packages == {"config", "data", "model", "training"}
    assert {"gpt_jax.data.tasks", "gpt_jax.model.attention", "gpt_jax.training.step"} <= set(found)


# ── pieces from outside ──────────────────────────────────────────────────────────────────────────────────────────────

CELL = '''
import jax.numpy as jnp
from dataclasses import dataclass
from gpt_jax import Mixer, register_attention
from gpt_jax.config import AttentionConfig

FACTOR = 2.0

def helper(x):
    return x * FACTOR

@dataclass(frozen=True)
class Twice(AttentionConfig):
    width: int = 8

@register_attention(Twice)
class TwiceAttention(Mixer):
    """Doubles."""

    TABLE = {"a": (1, 2)}

    def __call__(self, x, row, cache, shared, train):
        return helper(x), cache, shared
'''


@pytest.fixture
def registered() -> Iterator[None]:
    """What tests register is gone after them."""
    tables: list[dict[Any, Any]] = [ATTENTIONS, ACTIVATIONS, AttentionConfig.choices, DataConfig.choices]
    kept = [dict(table) for table in tables]
    yield
    for table, before in zip(tables, kept, strict=True):
        table.clear()
        table.update(before)


def run_cell(text: str, has_source: bool = True) -> Address:
    """The address of a run of `Twice` after a notebook's cell ran; without source, as after exec of a text."""
    name = f"<cell {hash(text)}>" if has_source else "<string>"
    if has_source:
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    module = types.ModuleType("__main__")
    exec(compile(text, name, "exec"), vars(module))
    block = BlockConfig(module.Twice(), Mlp(32))
    return address(tiny_config(model={"blocks": (block,) * 2}))


@pytest.mark.parametrize("has_source", [True, False])
@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("return helper(x), cache", "return helper(x) + x, cache", "TwiceAttention"),
        ("x * FACTOR", "x + FACTOR", "helper"),
        ("FACTOR = 2.0", "FACTOR = 3.0", "helper"),
        ('{"a": (1, 2)}', '{"a": (1, 3)}', "TwiceAttention"),
        ("width: int = 8", "width: int = 8\n    other: float = 1.0", "Twice"),
    ],
)
def test_a_registered_attention_counts_by_its_code(
    registered: None, old: str, new: str, name: str, has_source: bool
) -> None:
    """Of the class, of the functions that it calls and the constants that they read, from a notebook too."""
    before = run_cell(CELL, has_source)
    assert run_cell(CELL, has_source).hash == before.hash
    changed = said(before, run_cell(CELL.replace(old, new), has_source))
    assert f"code of {name}" in changed and all(c.startswith(("code of", "model.")) for c in changed)


def test_rewording_a_registered_attention_changes_nothing(registered: None) -> None:
    before = run_cell(CELL)
    reworded = CELL.replace('"""Doubles."""', '"""Twice x."""').replace("    return x *", "    # twice\n    return x *")
    assert run_cell(reworded + "\nUNUSED = 3\n").hash == before.hash


def test_replacing_what_implements_a_type_of_ours_changes_it(registered: None) -> None:
    before = address()
    kind = type(tiny_config().model.blocks[0].attention)

    class Other(ATTENTIONS[kind]):  # type: ignore[misc]
        def __call__(self, *args: Any) -> Any:
            return super().__call__(*args)

    ATTENTIONS[kind] = Other
    assert any("Other" in change for change in said(before, address()))
    del Other


def test_a_table_by_words_counts_for_its_word_only(registered: None) -> None:
    before = address()
    ACTIVATIONS["mine"] = lambda x: x
    assert address().hash == before.hash
    ACTIVATIONS[tiny_config().model.blocks[0].mlp.activation] = lambda x: x * 2
    assert len(said(before, address())) == 1


def test_a_task_of_ones_own_counts_by_its_code(registered: None) -> None:
    @dataclasses.dataclass(frozen=True)
    class Mine(Copy):
        def doubled(self) -> int:
            return 2 * self.symbols

    config = tiny_config(data=Mine(symbols=8, length=4, validation_rows=10))
    assert any("Mine" in name for name in address(config).parts["pieces"])
    assert address().parts["pieces"] == {}


# ── where it runs ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("setting", "value", "name"),
    [
        ("jax_default_matmul_precision", "highest", "default matmul precision: None → 'highest'"),
        ("jax_enable_x64", True, "enable x64: False → True"),
        ("jax_default_prng_impl", "rbg", "default prng impl: 'threefry2x32' → 'rbg'"),
        ("jax_numpy_dtype_promotion", "strict", "numpy dtype promotion: 'standard' → 'strict'"),
    ],
)
def test_numeric_settings_count(setting: str, value: Any, name: str) -> None:
    before, kept = address(), getattr(jax.config, setting)
    jax.config.update(setting, value)
    try:
        assert name in said(before, address())
    finally:
        jax.config.update(setting, kept)
    assert address() == before


def test_flags_count_unless_they_only_write_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_one=1")
    before = address()
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/dump  --xla_one=1")
    assert address() == before
    monkeypatch.setenv("XLA_FLAGS", "--xla_one=2")
    assert said(before, address()) == ["XLA_FLAGS: ['--xla_one=1'] → ['--xla_one=2']"]
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu=1")
    assert len(said(before, address())) == 2


def test_devices_and_libraries_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = address()
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert said(before, address()) == [f"device count: {len(jax.devices())} → 8"]
    monkeypatch.undo()
    monkeypatch.setattr("gpt_jax.runs.address.versions", lambda: {"jax": "0.0.1", "rich": "0.0.1"})
    assert any(change.startswith("jax ") for change in said(before, address()))
    assert "rich" not in address().parts["libraries"]


# ── what it is asked to do ───────────────────────────────────────────────────────────────────────────────────────────


def test_settings_count_unless_they_decide_no_number() -> None:
    before = address()
    assert address(tiny_config(prompt="other", checkpoint=Checkpoint(every=1))).hash == before.hash
    assert said(before, address(tiny_config(seed=1))) == ["seed: 0 → 1"]
    assert said(before, address(tiny_config(steps=7))) == ["train.steps: 6 → 7"]
    assert said(before, run_address(_resolved(), "other data")) == ["the content of the data"]


def _resolved() -> Config:
    config = tiny_config()
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=9))


def test_what_a_run_begins_with_counts_by_its_content(tmp_path: Path) -> None:
    """A base that was moved has the same content; one that trained further has another."""
    config = tiny_config(steps=2)
    train(config, tmp_path / "base", console=Console(quiet=True))
    content = base_content(str(tmp_path / "base"))
    shutil.copytree(tmp_path / "base", tmp_path / "moved")
    there = dataclasses.replace(tiny_config(), init_from=str(tmp_path / "base"))
    here = dataclasses.replace(tiny_config(), init_from=str(tmp_path / "moved"))
    before = address(there, content)
    assert before == address(here, base_content(str(tmp_path / "moved")))
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=3)), tmp_path / "moved",
          console=Console(quiet=True))  # fmt: skip
    assert said(before, address(here, base_content(str(tmp_path / "moved")))) == ["the content of init_from"]


def test_what_watches_a_run_keeps_its_address_and_what_skips_updates_does_not() -> None:
    before = address()
    watched = tiny_config(watchdog=Watchdog(factor=3.0), recompute_every=2)
    train = dataclasses.replace(watched.train, spikes=LogSpikes(window=7))
    assert address(dataclasses.replace(watched, train=train)) == before
    skipping = dataclasses.replace(watched.train, spikes=SkipSpikes(window=7))
    assert "train.spikes.type" in str(said(before, address(dataclasses.replace(watched, train=skipping))))
