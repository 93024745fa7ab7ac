"""Reading a published `config.json` strictly: an unknown key is an error."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gpt_jax.config.errors import ConfigError, UserError, nearest
from gpt_jax.config.foreign import shown

MOST = 2**31 - 1  # of a whole number: sizes and ids are 32-bit on devices
DEEPEST, LONGEST = 32, 200  # groups in groups, and characters of a key, in a settings file
# Whole numbers are at least 1, but: −1 is an id that no token has; 0 means that none has it, or that it is derived.
LEAST = {"pad_token_id": -1, "max_window_layers": 0, "v_head_dim": 0, "rotary_dim": 0}
TINY, LARGEST = 1e-30, 1e30  # of any other number that is not 0, well inside of float32

# Keys that any configuration of `transformers` may have and that do not change the logits: names, ids, labels of other
# tasks, how a library runs or initialises the model, and generation settings of older files.
HARMLESS = frozenset(
    """
    model_type architectures transformers_version transformers.js_config is_llama_config torch_dtype dtype auto_map
    _name_or_path name_or_path _commit_hash use_cache return_dict output_hidden_states output_attentions
    output_scores return_dict_in_generate torchscript bos_token_id eos_token_id pad_token_id unk_token_id
    sep_token_id cls_token_id mask_token_id decoder_start_token_id eod_token_id id2label label2id num_labels
    problem_type finetuning_task task_specific_params tokenizer_class prefix initializer_range
    gradient_checkpointing chunk_size_feed_forward is_decoder cross_attention_hidden_size tie_encoder_decoder
    use_bfloat16 tf_legacy_loss _attn_implementation attn_implementation _attn_implementation_autoset
    _flash_attn_2_enabled use_flash_attn pretraining_tp cache_implementation max_length min_length max_new_tokens
    do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
    repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens unsloth_fixed unsloth_version
    custom_pipelines _num_labels output_past model_max_length max_sequence_length
    """.split()
)
# Keys that any configuration may have, and that must have the default value of `transformers`: key → value
EXPECTED: dict[str, Any] = {
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "per_layer_config": None,
    "rope_interleaved": False,
    "use_mrope": False,
}


def checked_whole(key: str, value: Any, least: int, most: int = MOST) -> int:
    """Returns the whole number `value` of `key`, which must lie in [least, most]; raises ConfigError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f'the setting "{key}" is {shown(value)}, and must be a whole number')
    if not least <= value <= most:
        raise ConfigError(f'the setting "{key}" is {shown(value)}, and must lie in {least:,} … {most:,}')
    return value


def checked_number(key: str, value: Any, least: int | float = -LARGEST, most: int | float = LARGEST) -> float:
    """Returns the number `value` of `key` as a float in [least, most]; raises ConfigError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f'the setting "{key}" is {shown(value)}, and must be a number')
    if not least <= value <= most:  # NaN lies nowhere
        raise ConfigError(f'the setting "{key}" is {shown(value)}, and must lie in {least:g} … {most:g}')
    return float(value)


def check_tree(values: Any, source: Any) -> None:
    """Raises UserError if the JSON value of a settings file `source` nests too deep, or has a key that is no name."""
    level = [values]
    for _ in range(DEEPEST):
        level = [part for value in level if isinstance(value, dict | list) for part in _parts(value, source)]
        if not level:
            return
    raise UserError(f"{source} nests deeper than {DEEPEST} groups: restore the file")


def _parts(value: dict[str, Any] | list[Any], source: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    wrong = next((key for key in value if not key.isprintable() or len(key) > LONGEST), None)
    if wrong is not None:
        raise UserError(f"{source} has the key {shown(wrong)}, which is no name of a setting: restore the file")
    return list(value.values())


class Settings:
    """The settings of a `config.json`, with the family's defaults for missing keys.

    Methods that read a key raise ConfigError if its value has another type.

    Attributes:
      values: the settings in the file.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        defaults: Mapping[str, Any],
        family: str,
        ignore: Collection[str] = (),
        fixed: Mapping[str, Any] | None = None,
    ) -> None:
        self.values = {key: value for key, value in values.items() if key not in ignore}
        self._defaults, self._family = defaults, family
        self._fixed = EXPECTED | dict(fixed or {})

    def __getitem__(self, key: str) -> Any:
        """Returns the value of `key`, or the family's default if the file lacks it."""
        return self.values[key] if key in self.values else self._defaults[key]

    def __contains__(self, key: str) -> bool:
        """Whether the file has `key`."""
        return key in self.values

    def has_default(self, key: str) -> bool:
        """Whether the family has a default for `key`."""
        return key in self._defaults

    def replaced(self, **changes: Any) -> Settings:
        """Returns the settings with some values replaced."""
        return Settings(self.values | changes, self._defaults, self._family, (), self._fixed)

    def number(self, key: str) -> float:
        """Returns a float, also if the file has an integer."""
        value = self._typed(key, (int, float))
        return checked_number(key, value, *((0, 1) if "drop" in key else (TINY, LARGEST)))

    def optional_number(self, key: str) -> float | None:
        return None if self[key] is None else self.number(key)

    def integer(self, key: str) -> int:
        return checked_whole(key, self._typed(key, (int,)), LEAST[key] if key in LEAST else 1)

    def optional_integer(self, key: str) -> int | None:
        return None if self[key] is None else self.integer(key)

    def listed(self, key: str) -> list[Any]:
        """Returns a list."""
        if not isinstance(self[key], list | tuple):
            raise ConfigError(f'config.json has "{key}": {shown(self[key])}, which must be a list')
        return list(self[key])

    def group(self, key: str) -> dict[str, Any]:
        """Returns a group of settings; null is an empty one."""
        value = {} if self[key] is None else self[key]
        if not isinstance(value, Mapping):
            raise ConfigError(f'config.json has "{key}": {shown(value)}, which must be a group of settings')
        return dict(value)

    def flag(self, key: str) -> bool:
        """Returns True or False; null is False."""
        value = self[key]
        if value not in (None, True, False):
            raise ConfigError(f'config.json has "{key}": {shown(value)}, which must be true or false')
        return bool(value)

    def expect(self, key: str, allowed: Collection[Any], why: str) -> Any:
        """Returns the value of `key`, which must be one of `allowed`.

        Raises:
          ConfigError: it has another value; the message is "config.json has KEY: VALUE, and gpt_jax has no `why`".
        """
        if self[key] not in list(allowed):  # a list, because an unhashable value cannot be looked up in a set
            raise ConfigError(f'config.json has "{key}": {shown(self[key])}, and gpt_jax has no {why}')
        return self[key]

    def refuse_unknown(self) -> None:
        """Raises ConfigError for an unknown key, or a key of `fixed` with another value."""
        for key, value in self.values.items():
            if key in self._fixed and value not in (self._fixed[key], None):
                raise ConfigError(
                    f'config.json has "{key}": {shown(value)}, and gpt_jax reads {self._family} models only without it'
                )
            if key not in self._defaults and key not in HARMLESS and key not in self._fixed:
                raise ConfigError(
                    f'config.json of the family {self._family} has an unknown key "{key}": {shown(value)}'
                    f'{self._near(key)}; if it does not change the logits, pass ignore=("{key}",)'
                )

    def _near(self, key: str) -> str:
        hint = nearest(key, self._defaults)
        return hint if hint.startswith("; did") else ""

    def _typed(self, key: str, kinds: tuple[type, ...]) -> Any:
        value = self[key]
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise ConfigError(f'config.json has "{key}": {shown(value)}, which must be a number')
        return value
