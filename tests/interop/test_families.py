"""Each family against fixtures that `transformers` computed (`make_fixtures.py`): logits, greedy text, files."""

import dataclasses
import functools
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from gpt_jax import GPT, Greedy, generate
from gpt_jax.config import depends_on_length
from gpt_jax.config.errors import ConfigError
from gpt_jax.interop.families import FAMILIES
from gpt_jax.interop.hf import choose_family, load_pretrained, save_pretrained
from gpt_jax.interop.normal import normal_form
from tests.interop.make_fixtures import FIXTURES

NAMES = sorted(folder.name for folder in FIXTURES.iterdir())
TOLERANCE = 1e-4
needs_transformers = pytest.mark.skipif(
    not (importlib.util.find_spec("transformers") and importlib.util.find_spec("torch")),
    reason='needs transformers: pip install -e ".[oracles]"',
)


@functools.cache
def model_type(name: str) -> str:
    return settings(FIXTURES / name)["model_type"]


def settings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


@functools.cache
def loaded(name: str) -> tuple[GPT, Any, Any]:
    """Model, parameters and tokenizer of a fixture, read once a process."""
    return load_pretrained(FIXTURES / name)


def expected(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with np.load(FIXTURES / name / "expected.npz") as file:
        return file["ids"], file["logits"], file["greedy"]


def test_every_family_has_fixtures() -> None:
    assert {model_type(name) for name in NAMES} == set(FAMILIES)


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_greedy_tokens_are_those_of_transformers(name: str) -> None:
    model, params, tokenizer = loaded(name)
    assert tokenizer is None
    ids, logits, greedy = expected(name)
    T = ids.shape[1]
    apply = jax.jit(model.apply)
    longer = np.asarray(apply(params, np.concatenate([ids, greedy], axis=1).astype(np.int32)))
    ours = apply(params, ids.astype(np.int32)) if depends_on_length(model.config) else longer[:, :T]
    np.testing.assert_allclose(ours, logits, atol=TOLERANCE)
    np.testing.assert_array_equal(longer[:, T - 1 : -1].argmax(-1), greedy)


@functools.cache
def first_of(family: str) -> str:
    return next(name for name in NAMES if model_type(name) == family and expected(name)[2].size)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_from_a_cache_are_those_of_transformers(family: str) -> None:
    model, params, _ = loaded(first_of(family))
    ids, _, greedy = expected(first_of(family))
    ours = generate(model, params, ids, key=jax.random.key(0), max_new_tokens=greedy.shape[1], sampler=Greedy())
    np.testing.assert_array_equal(ours.tokens, greedy)


@pytest.mark.parametrize("name", NAMES)
def test_saved_parameters_are_read_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, params, _ = loaded(name)
    save_pretrained(tmp_path, model, params, family=model_type(name))
    assert settings(tmp_path)["model_type"] == model_type(name)
    again, back, _ = load_pretrained(tmp_path)
    assert normal_form(again.config) == normal_form(model.config)
    jax.tree.map(np.testing.assert_array_equal, back, params)


@needs_transformers
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_transformers_opens_what_is_saved_with_equal_logits(name: str, tmp_path: Path) -> None:
    """As the model's own family, and as the one that is chosen for it."""
    from tests.interop.make_fixtures import logits_of, reopened

    model, params, _ = loaded(name)
    ids, logits, _ = expected(name)
    for family in {model_type(name), choose_family(model.config)[0].model_type}:
        save_pretrained(tmp_path / family, model, params, family=family)
        np.testing.assert_allclose(logits_of(reopened(tmp_path / family), ids), logits, atol=TOLERANCE)


@needs_transformers
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_missing_keys_take_transformers_defaults(family: str) -> None:
    """A family's settings with no keys at all are those with every key that transformers writes for a default."""
    from transformers import AutoConfig

    chosen = FAMILIES[family]
    every = json.loads(AutoConfig.for_model(family).to_json_string(use_diff=False))
    known = {key: value for key, value in every.items() if chosen.aliases.get(key, key) in chosen.defaults}
    read = [normal_form(chosen.read(chosen.settings(values))) for values in ({}, known)]
    assert read[0] == read[1]


def with_settings(tmp_path: Path, name: str, **changes: Any) -> Path:
    """A copy of a fixture with other settings; None leaves a key out."""
    shutil.copytree(FIXTURES / name, tmp_path, dirs_exist_ok=True)
    values = {key: value for key, value in (settings(tmp_path) | changes).items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(values))
    return tmp_path


# What a family's settings can say and gpt_jax can't do: fixture, key, value, what the error says.
REFUSED = [
    ("gpt2", "add_cross_attention", True, "add_cross_attention"),
    ("gpt2", "activation_function", "quick_gelu", "no such activation"),
    ("gpt_neo", "attention_types", [[["global"], 3]], "attention_types"),
    ("gptj", "rotary_dim", 3, "must be even"),
    ("codegen", "n_head", 2, "a multiple of 4"),
    ("opt", "word_embed_proj_dim", 8, "no projection between embeddings"),
    ("xglm", "pad_token_id", 4, "position 2 has no code"),
    ("bloom", "apply_residual_connection_post_layernorm", True, "residual stream"),
    ("mpt", "attn_config", {"alibi": False}, "MPT without ALiBi"),
    ("mpt", "attn_config", {"alibi_bias_max": 4}, "MPT with other slopes"),
    ("mpt", "attn_config", {"rope": True}, 'unknown key "rope"'),
    ("mpt", "logit_scale", 0.5, "logit_scale"),
    ("falcon_7b", "num_ln_in_parallel_attn", 2, "two norms"),
    ("falcon_40b", "parallel_attn", False, "no Falcon has"),
    ("falcon_rw", "num_kv_heads", 2, "num_kv_heads"),
    ("gpt_neox", "rope_parameters", {"rope_type": "proportional"}, "proportional"),
    ("phi3", "mlp_bias", True, "biases in Phi-3"),
    ("starcoder2", "norm_type", "rms_norm", "no such norm"),
    ("stablelm", "qk_layer_norm", True, 'unknown key "qk_layer_norm"'),
]


@pytest.mark.parametrize("name, key, value, message", REFUSED, ids=lambda x: str(x)[:20])
def test_settings_that_gpt_jax_lacks_are_refused(name: str, key: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_pretrained(with_settings(tmp_path, name, **{key: value}))


@pytest.mark.parametrize(
    "name, changes",
    [
        ("gpt2", {"n_layer": None, "num_hidden_layers": 2, "n_embd": None, "hidden_size": 16}),
        ("gpt_neox", {"rope_parameters": None, "rotary_pct": 0.25, "rotary_emb_base": 10_000}),
        ("phi", {"rope_parameters": None, "partial_rotary_factor": 0.5, "rope_theta": 10_000.0}),
        ("phi3_longrope", {"rope_parameters": None, "partial_rotary_factor": 0.75, "rope_theta": 500.0} | {
            "rope_scaling": {"type": "su", "short_factor": [1.0, 1.1, 1.2], "long_factor": [1.0, 2.5, 4.0]}
        }),
        ("bloom", {"hidden_size": None, "n_embed": 16, "masked_softmax_fusion": True, "pretraining_tp": 4}),
        ("falcon_7b", {"hidden_size": None, "n_embed": 16}),
    ],
)  # fmt: skip
def test_older_spellings_give_the_same_model(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    new, _, _ = loaded(name)
    old, _, _ = load_pretrained(with_settings(tmp_path, name, **changes))
    assert normal_form(old.config) == normal_form(new.config)


def test_a_key_in_two_spellings_with_two_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='"hidden_size"'):
        load_pretrained(with_settings(tmp_path, "gpt2", hidden_size=20))


def test_falcon_reads_which_attention_its_alibi_is_for(tmp_path: Path) -> None:
    """transformers 5 adds it twice in "eager" attention; files that don't say so are told apart by their version."""

    def scale(**changes: Any) -> float:
        model, _, _ = load_pretrained(with_settings(tmp_path, "falcon_rw", **changes))
        return model.config.blocks[0].attention.position.scale

    once = 4**-0.5
    assert scale() == scale(attn_implementation=None, transformers_version="4.27.0.dev0") == once
    assert scale(attn_implementation="eager") == 2 * once
    with pytest.warns(UserWarning, match='"eager" adds ALiBi'):
        assert scale(attn_implementation=None, transformers_version="5.23.0") == 2 * once


def test_a_dropout_that_the_family_lacks_does_not_prevent_saving(tmp_path: Path) -> None:
    model, params, _ = loaded("nemotron")
    block = dataclasses.replace(model.config.blocks[0], dropout=0.1)
    dropped = type(model)(dataclasses.replace(model.config, blocks=(block,) * model.config.layers))
    save_pretrained(tmp_path, dropped, params, family="nemotron")
    again, _, _ = load_pretrained(tmp_path)
    assert normal_form(again.config) == normal_form(model.config)


def test_dropout_is_where_transformers_has_it(tmp_path: Path) -> None:
    folder = with_settings(tmp_path, "gpt2", resid_pdrop=0.2, embd_pdrop=0.3, attn_pdrop=0.4)
    config = load_pretrained(folder)[0].config
    block = config.blocks[0]
    assert (block.dropout, config.embedding.dropout, block.attention.dropout) == (0.2, 0.3, 0.4)


def test_the_documentation_lists_every_family() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
    assert [
        line.split("`")[1] for line in text.splitlines() if line.startswith("| `") and "model_type" not in line
    ] == (sorted(FAMILIES))
