"""What published folders hold beside what decides logits, and what people give by mistake."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gpt_jax.config.errors import ConfigError
from gpt_jax.data.tokenizer.chat import render_chat
from gpt_jax.interop.families import FAMILIES
from gpt_jax.interop.hf import load_pretrained
from gpt_jax.runs.load import load_run
from tests.interop.make_fixtures import FIXTURES

# Of Qwen2.5-0.5B, gpt2-medium, Apertus-8B, Youtu-LLM-2B, gemma-2-9b, Hunyuan-0.5B, LLaMA-7B, gpt-neox-20b, command-r,
# command-r7b, Galactica.
EXTRA: dict[str, dict[str, Any]] = {
    "qwen2": {"use_mrope": False, "unsloth_fixed": True},
    "gpt2": {"n_special": 0, "predict_special_tokens": True, "output_past": True, "_num_labels": 1},
    "apertus": {"hidden_dropout": 0.0, "post_norm": False},
    "youtu": {"mlp_bias": False},
    "gemma2": {"sliding_window_size": "sliding_window"},
    "hunyuan_v1_dense": {"use_cla": False, "cla_share_factor": 2, "norm_type": "rms", "mlp_bias": False, "pad_id": -1},
    "llama": {"max_sequence_length": 2048},
    "gpt_neox": {"attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0},
    "cohere": {"model_max_length": 131072},
    "cohere2": {"layer_switch": 4},
    "opt": {"learned_embeddings": True, "scale_embeddings": False},
}


def settings(family: str) -> dict[str, Any]:
    found = [json.loads(file.read_text()) for file in sorted(FIXTURES.glob("*/config.json"))]
    return next(values for values in found if values["model_type"] == family)


@pytest.mark.parametrize("family", EXTRA)
def test_keys_that_change_nothing_are_no_obstacle(family: str) -> None:
    chosen, values = FAMILIES[family], settings(family)
    more = {key: values[value] if value in values else value for key, value in EXTRA[family].items()}
    found = chosen.settings(values | more)
    assert chosen.read(found) == chosen.read(chosen.settings(values))
    found.refuse_unknown()


@pytest.mark.parametrize(
    ("family", "wrong"),
    [("qwen2", {"use_mrope": True}), ("apertus", {"mlp_bias": True}), ("gemma2", {"sliding_window_size": 3})],
)
def test_switches_that_would_change_logits_are_refused(family: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        found = FAMILIES[family].settings(settings(family) | wrong)
        FAMILIES[family].read(found)
        found.refuse_unknown()


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("gpt2", "hf download gpt2 --local-dir gpt2"),
        ("org/some-model", "hf download org/some-model --local-dir some-model"),
        ("https://hub.example/org/some-model", "hf download org/some-model --local-dir some-model"),
    ],
)
def test_a_name_on_the_hub_gets_the_command_that_downloads_it(
    name: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    with pytest.raises(FileNotFoundError, match=command):
        load_pretrained(name)


def test_a_folder_with_a_gguf_file_alone_names_it(tmp_path: Path) -> None:
    (tmp_path / "model-q8.gguf").touch()
    with pytest.raises(FileNotFoundError, match="give the file .*model-q8.gguf"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", ["float64", "fp16", None])
def test_other_types_are_refused(dtype: Any) -> None:
    with pytest.raises((ConfigError, TypeError), match="float32|dtype"):  # the second by the tests' own type checker
        load_pretrained(FIXTURES, dtype)


def test_a_published_folder_is_no_run() -> None:
    folder = next(FIXTURES.glob("llama*"))
    with pytest.raises(ConfigError, match="experiments.convert --from="):
        load_run(folder)


@pytest.mark.parametrize(
    "group", ["x", {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 8}]
)
def test_damaged_groups_of_a_rotation_are_named(group: Any) -> None:
    with pytest.raises(ConfigError, match="rope"):
        FAMILIES["phi3"].read(FAMILIES["phi3"].settings(settings("phi3") | {"rope_parameters": group}))


def test_a_stop_that_the_tokenizer_lacks_is_told_and_left_out(tmp_path: Path) -> None:
    import tokenizers

    folder = tmp_path / "model"
    shutil.copytree(next(f for f in sorted(FIXTURES.glob("gpt2*"))), folder)
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    library.save(str(folder / "tokenizer.json"))
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"eos_token_id": 50256}))
    with pytest.warns(UserWarning, match="50256"):
        _, _, tokenizer = load_pretrained(folder)
    assert tokenizer is not None and 50256 not in tokenizer.stop


@pytest.mark.parametrize("template", ["{{ 'a' + 1 }}", "{{ 1 / 0 }}"])
def test_a_template_that_fails_is_one_sentence(template: str) -> None:
    with pytest.raises(ValueError, match="cannot render"):
        render_chat(template, [{"role": "user", "content": "a"}], {}, add_generation_prompt=True)
