"""What `experiments.inspect` shows: its models, the page of a prompt, and a server of such pages for this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from experiments import cli
from gpt_jax.ablation.results import collect
from gpt_jax.analysis.walkthrough import walk_through
from gpt_jax.analysis.walkthrough_layer import Limits
from gpt_jax.config.errors import UserError, nearest
from gpt_jax.data.tokenizer import Tokenizer
from gpt_jax.model.gpt import GPT
from gpt_jax.pages.walkthrough import question_page, walkthrough_page
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.load import load_run

HOST, NAMES = "127.0.0.1", ("127.0.0.1", "localhost")


class Arm(NamedTuple):
    """One model and what it is called."""

    name: str
    model: GPT
    params: Any
    tokenizer: Tokenizer


def open_arms(workdirs: Sequence[str]) -> list[Arm]:
    """The models of runs, which must have one tokenizer.

    Raises:
      UserError: as `load_run`, or their tokenizers differ.
    """
    short = [Path(workdir).name for workdir in workdirs]
    names = short if len(set(short)) == len(short) else workdirs
    arms = [Arm(name, *load_run(workdir)) for name, workdir in zip(names, workdirs, strict=True)]
    if len({arm.tokenizer.content_hash() for arm in arms}) > 1:
        raise UserError(f"the tokenizers of {' and '.join(workdirs)} differ: two arms must read the same tokens")
    return arms


def open_study_arms(workdir: str, names: Sequence[str]) -> list[Arm]:
    """The models of two arms of a study, trained from the first seed of which both have a finished run; of one name,
    the baseline's and that one's.

    Raises:
      UserError: the study has no such arms, or no seed of which both have finished.
    """
    results = collect(workdir)
    runs = {
        arm.name: {
            run.seed: run
            for run in arm.runs
            if run.seed is not None and run.status == "finished" and arm.learning_rate in (None, run.learning_rate)
        }
        for arm in results.arms
    }
    chosen = [results.baseline, *names] if len(names) == 1 else list(names)
    if len(set(chosen)) != 2:
        raise UserError(f"give one arm, to stand beside the baseline {results.baseline}, or two of {', '.join(runs)}")
    for name in chosen:
        if name not in runs:
            raise UserError(f'the study has no arm "{name}"{nearest(name, runs)}')
    shared = sorted(set(runs[chosen[0]]) & set(runs[chosen[1]]))
    if not shared:
        raise UserError(f"no seed of {' and '.join(chosen)} has finished in both: let the study run on")
    folders = [str(RunFolder(workdir).file(str(runs[name][shared[0]].folder))) for name in chosen]
    return [arm._replace(name=name) for name, arm in zip(chosen, open_arms(folders), strict=True)]


def page_of(arms: Sequence[Arm], prompt: str, tokens: int | None, asks: bool = False) -> str:
    """The page of `prompt`, continued by `tokens` tokens; `asks` for another prompt, where a server answers.

    Raises:
      UserError: as `walk_through`, or the prompt cannot be encoded.
    """
    ids, limits = _ids_of(arms[0].tokenizer, prompt), Limits(bytes=Limits.bytes // len(arms))
    options: dict[str, Any] = {"new_tokens": tokens, "limits": limits, "shares_programs": asks}
    walks = [walk_through(arm.model, arm.params, arm.tokenizer, ids, name=arm.name, **options) for arm in arms]
    return walkthrough_page(_title(arms), prompt, walks, cli.command(), asks)


def _title(arms: Sequence[Arm]) -> str:
    return f"A walk through {' and '.join(arm.name for arm in arms)}"


def _ids_of(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The prompt's ids, after those that the tokenizer puts before a document."""
    ids = tokenizer.encode(prompt, allowed_special="all")
    ids = ids if ids[: len(tokenizer.prefix)] == tokenizer.prefix else [*tokenizer.prefix, *ids]
    if ids:
        return ids
    if tokenizer.end_of_text is None:
        raise cli.UsageError("--prompt is required, because this run's tokenizer has no end-of-text token: give a text")
    return [tokenizer.end_of_text]


def server_of(page: Callable[[str], str], prompt: str, port: int) -> HTTPServer:
    """A server of `page`, called with the prompt that was typed, or with `prompt` at first; for this machine alone.

    Requests under another name than this machine's are refused: a page elsewhere could otherwise read the answers
    through a name that it makes point here. A `port` of 0 is a free one.

    Raises:
      UserError: the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            if self.headers.get("Host", "").rpartition(":")[0] not in NAMES:
                self._answer(403, "text/plain", f"open this page at http://{HOST}:{self.server.server_port}/")  # type: ignore[attr-defined]
            elif asked.path != "/":
                self._answer(404, "text/plain", "there is one page here: /")
            else:
                typed = parse_qs(asked.query, keep_blank_values=True).get("prompt", [prompt])[0].replace("\r\n", "\n")
                try:
                    self._answer(200, "text/html", page(typed))
                except UserError as error:
                    self._answer(400, "text/html", question_page("A walk through a model", typed, str(error)))

        def _answer(self, code: int, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(code)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Prints nothing."""

    try:
        return HTTPServer((HOST, port), Handler)
    except OSError:
        raise UserError(f"port {port} is taken: choose another one with --port") from None
