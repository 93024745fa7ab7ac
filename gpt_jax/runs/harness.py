"""gpt_jax as a model of EleutherAI's lm-evaluation-harness (extra `eval`): importing this file registers it.

Requests are tokenized, shortened and cut at stop sequences as the harness's own model `hf` does it, so that the numbers
of a model are the same before and after it is converted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from gpt_jax.analysis.scoring import Scorer
from gpt_jax.config.errors import UserError
from gpt_jax.config.mesh import ALL_DATA
from gpt_jax.decoding.generate import stream
from gpt_jax.decoding.sampling import Sampler
from gpt_jax.runs.load import open_run, run_tokenizer
from gpt_jax.training.sharding import make_mesh

BATCH_SIZE = 32
NEW_TOKENS = 256  # of a task that does not say how many, as in `hf`
EVERY = 16  # decoding steps between looks for stop sequences
SAMPLING = ("temperature", "top_k", "top_p", "min_p")
# What the harness, or its command, gives every model, and what has no meaning for one in JAX.
FOREIGN = ("device", "max_batch_size")


@register_model("gpt_jax")
class HarnessModel(TemplateLM):
    """The model of a run, from the checkpoint of `step` (None: from the newest good one).

    `mesh`, written as `Config.mesh`, divides rows and parameters over all devices. `prefix_token_id` is the token that
    comes before a text without context (None: the tokenizer's beginning of a text, or its end of one). `seed` is that
    of sampled generations; row i of a task is sampled with its i-th key.

    Raises:
      UserError: as `load_run`; or an argument is unknown or out of range.
    """

    def __init__(
        self,
        workdir: str | None = None,
        step: int | None = None,
        mesh: str = ALL_DATA,
        batch_size: int | str = BATCH_SIZE,
        prefix_token_id: int | None = None,
        seed: int = 0,
        **foreign: Any,
    ) -> None:
        super().__init__()
        if workdir is None:
            raise UserError("give the folder of a run: --model_args workdir=DIR")
        unknown = [name for name, value in foreign.items() if name not in FOREIGN and value is not None]
        if unknown:
            raise UserError(
                f'the model gpt_jax has no argument "{unknown[0]}": it has workdir, step, mesh, batch_size, '
                "prefix_token_id and seed"
            )
        if not str(batch_size).isdecimal():
            raise UserError(f"batch_size must be a number of rows, not {batch_size}")
        devices = make_mesh(axes=mesh)
        opened = open_run(workdir, step, devices)
        self.model, self.params, self._seed = opened.model, opened.params, seed
        self.own_tokenizer, self._prefix = run_tokenizer(opened.folder), prefix_token_id
        self._score = Scorer(self.model, self.params, devices, int(batch_size))
        self.max_length = self._score.max_length

    # ── texts and ids ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def eot_token_id(self) -> int:
        return self._needed(self.own_tokenizer.end_of_text)

    @property
    def prefix_token_id(self) -> int:
        choices = (self._prefix, *self.own_tokenizer.prefix, self.own_tokenizer.end_of_text)
        return self._needed(next((token for token in choices if token is not None), None))

    @property
    def tokenizer_name(self) -> str:
        return self.own_tokenizer.content_hash()

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        ids, prefix = self.own_tokenizer.encode(string, allowed_special="all"), self.own_tokenizer.prefix
        if add_special_tokens is False or ids[: len(prefix)] == prefix:
            return ids
        return [*prefix, *ids]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation by the model's own template, for `--apply_chat_template`. Without `add_generation_prompt` it
        ends where its last message ends, which the answer then continues.
        """
        text = self.own_tokenizer.chat_text(chat_history, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].lstrip()
        before, said, after = text.rpartition(last.rstrip())
        spaces = last[len(said) :]  # which templates may cut
        return before + said + (spaces if after.startswith(spaces) else "")

    def _needed(self, token: int | None) -> int:
        if token is None:
            raise UserError(
                "this run's tokenizer has no token that begins a text, which texts without a context need: give one, "
                "for example --model_args workdir=DIR,prefix_token_id=0"
            )
        return token

    # ── the three calls ──────────────────────────────────────────────────────────────────────────────────────────────

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        scores = self._score([(context, continuation) for _, context, continuation in requests])
        for (request, *_), score in zip(requests, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", request, tuple(score))
        return [(score.loglikelihood, score.is_greedy) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each text in nats, cut into windows of the context length that do not overlap."""
        windows: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in utils.get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
                windows.append(utils.make_disjoint_window(window))
                owners.append(i)
        totals = [0.0] * len(requests)
        for i, score in zip(owners, self._score(windows), strict=True):
            totals[i] += score.loglikelihood
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each prompt up to the first of its stop sequences."""
        classes: dict[str, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            classes[repr(sorted(request.args[1].items()))].append(i)
        texts = [""] * len(requests)
        for members in classes.values():
            options = dict(normalize_gen_kwargs(requests[members[0]].args[1], NEW_TOKENS))
            prompts = {i: self._prompt(requests[i].args[0], options["max_gen_toks"]) for i in members}
            members = sorted(members, key=lambda i: -len(prompts[i]))
            for k in range(0, len(members), self._score.rows):
                part = members[k : k + self._score.rows]
                for i, text in zip(part, self._continue([prompts[i] for i in part], part, options), strict=True):
                    texts[i] = text
                    self.cache_hook.add_partial("generate_until", requests[i].args, text)
        return texts

    def _prompt(self, text: str, new_tokens: int) -> list[int]:
        room = self.max_length - new_tokens
        if room < 1:
            raise UserError(
                f"a task asks for {new_tokens} new tokens, but the model's context has {self.max_length}: set "
                "max_gen_toks in the task, or with --gen_kwargs"
            )
        return (self.tok_encode(text) or [self.prefix_token_id])[-room:]

    def _continue(self, prompts: list[list[int]], numbers: list[int], options: dict[str, Any]) -> list[str]:
        until, tokenizer = [stop for stop in options["until"] if stop], self.own_tokenizer
        unknown = options.keys() - {"until", "max_gen_toks", "do_sample", *SAMPLING}
        if unknown:
            raise UserError(f'gpt_jax generates without "{min(unknown)}": leave it out of generation_kwargs')
        sampling = {name: options[name] for name in SAMPLING if name in options}
        if sampling.get("top_k") == 0:  # keeps all, as in `hf`
            del sampling["top_k"]
        sampler = Sampler(**sampling) if options["do_sample"] else Sampler(temperature=0)
        # One shape for all batches: the rows that follow the last prompt repeat it.
        blank = self._score.rows - len(prompts)
        keys = row_keys(self._seed, [*numbers, *numbers[-1:] * blank])
        pieces = stream(
            self.model,
            self.params,
            [*prompts, *prompts[-1:] * blank],
            key=keys,
            max_new_tokens=options["max_gen_toks"],
            sampler=sampler,
            stop=tokenizer.stop,
            every=EVERY,
        )
        stops, special = set(tokenizer.stop), set(tokenizer.special_tokens.values())
        made: list[list[int]] = [[] for _ in prompts]
        texts: list[str] = []
        for piece in pieces:
            for ids, more in zip(made, piece, strict=False):
                ids += more
            texts = [tokenizer.decode([i for i in ids if i not in special]) for ids in made]
            if all(
                stops & set(ids) or any(stop in text for stop in until) for ids, text in zip(made, texts, strict=True)
            ):
                break
        return [postprocess_generated_text(text, until, None) for text in texts]


def row_keys(seed: int, numbers: list[int]) -> jax.Array:
    """The key of each row, from its number in the task."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.array(numbers))
