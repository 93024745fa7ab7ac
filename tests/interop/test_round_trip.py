"""Random models of each family: what its settings say is kept on the way there and back, and is what transformers
computes.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import load_pretrained, save_pretrained
from gpt_jax.config.errors import ConfigError
from gpt_jax.interop.families import FAMILIES
from gpt_jax.interop.family import plain
from gpt_jax.interop.hf import choose_family
from gpt_jax.interop.normal import differences, normal_form
from gpt_jax.model.shapes import canonical_shapes
from tests.interop.random_settings import SETTINGS, Draw
from tests.interop.test_families import needs_transformers


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_survive_writing_and_reading(name: str) -> None:
    family, kinds = FAMILIES[name], set()
    for seed in range(12):
        model = family.read(family.settings(SETTINGS[name](Draw(seed))))
        chosen, values = choose_family(model, name)
        again = chosen.read(chosen.settings(values))
        assert chosen is family and not differences(normal_form(model), normal_form(again))
        kinds.add(normal_form(model))
    assert len(kinds) > 8


@pytest.mark.parametrize("name", SETTINGS)
def test_every_parameter_has_one_row(name: str) -> None:
    model = FAMILIES[name].read(FAMILIES[name].settings(SETTINGS[name](Draw(2))))
    paths = [path for row in FAMILIES[name].rows(model) for path in row.ours]
    assert sorted(paths) == sorted(canonical_shapes(plain(model)))
    theirs = [tensor for row in FAMILIES[name].rows(model) for tensor in row.names]
    assert len(set(theirs)) == len(theirs)


@needs_transformers
@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_random_models_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """In, and out again as their own family and as the one that is chosen for them."""
    from tests.interop.make_fixtures import Case, build, logits_of, reopened

    for seed in range(3):
        settings = SETTINGS[name](Draw(seed))
        theirs = build(Case(name, settings), seed)
        ids = np.random.default_rng(seed).integers(0, settings["vocab_size"], (2, 25))
        wanted = logits_of(theirs, ids)
        theirs.save_pretrained(tmp_path / f"{seed}")
        model, params, _ = load_pretrained(tmp_path / f"{seed}")
        logits = jax.jit(model.apply)(params, jnp.asarray(ids, jnp.int32))
        np.testing.assert_allclose(logits, wanted, atol=1e-4)
        for family in {name, choose_family(model.config)[0].model_type}:
            folder = tmp_path / f"{seed}_{family}"
            save_pretrained(folder, model, params, family=family)
            np.testing.assert_allclose(logits_of(reopened(folder, "eager"), ids), wanted, atol=1e-4)


def test_a_family_refuses_models_it_cannot_represent() -> None:
    """Every pair of families: written as another, a model either comes back as it was or is refused."""
    written = refused = 0
    some = list(SETTINGS)[::4]
    for name in some:
        model = FAMILIES[name].read(FAMILIES[name].settings(SETTINGS[name](Draw(1))))
        for other in FAMILIES.values():
            try:
                _, values = choose_family(model, other.model_type)
            except ConfigError:
                refused += 1
                continue
            assert (
                not differences(normal_form(model), normal_form(other.read(other.settings(values))))
                or model.blocks[0].dropout
            )
            written += 1
    assert written > len(some) and refused > 20 * len(some)
