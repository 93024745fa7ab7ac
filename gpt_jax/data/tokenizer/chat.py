"""Conversations as text, rendered with the Jinja template of a published model.

Templates are untrusted programs: they run in Jinja's sandbox and receive plain strings only. Beyond Jinja itself they
may use what `transformers` provides: `raise_exception`, `strftime_now`, a `tojson` without HTML escapes, loop controls,
and `{% generation %}` around the assistant's words.
"""

import datetime
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gpt_jax.config.errors import UserError

Message = Mapping[str, str]  # "role" ("system", "user" or "assistant") and "content"


def render_chat(
    template: str, messages: Sequence[Message], tokens: Mapping[str, str], *, add_generation_prompt: bool
) -> str:
    """Returns the text of a conversation.

    Args:
      template: the Jinja template.
      messages: the conversation.
      tokens: role → text of the special tokens that the template may name, such as `bos_token`.
      add_generation_prompt: ends the text where the assistant's next answer begins.

    Raises:
      UserError: the template is damaged, or rejects these messages.
    """
    plain = [{str(key): str(value) for key, value in message.items()} for message in messages]
    values = {"messages": plain, "tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
    try:
        return _compile(template).render(**values, **tokens)
    except (jinja2.TemplateError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        raise UserError(f"the chat template cannot render this conversation: {error}") from None


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> str:
    raise jinja2.TemplateError(message)


class _Generation(Extension):
    """`{% generation %}` … `{% endgeneration %}` marks the assistant's words and leaves the text unchanged."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller: Callable[[], str]) -> str:
        return caller()
