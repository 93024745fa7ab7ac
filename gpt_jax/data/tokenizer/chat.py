"""Conversations as text, rendered with the Jinja template of a published model.

Templates are untrusted programs: they run in Jinja's sandbox, in an interpreter of their own with limits on time and
memory (0.15 s for each new conversation), and receive plain strings only. Beyond Jinja itself they may use what
`transformers` provides: `raise_exception`, `strftime_now`, a `tojson` without HTML escapes, loop controls, and
`{% generation %}` around the assistant's words.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gpt_jax.config.errors import UserError
from gpt_jax.data import confined
from gpt_jax.data.tokenizer import template as templates

Message = Mapping[str, str]  # "role" ("system", "user" or "assistant") and "content"
SECONDS, MEGABYTES = 3, 512  # that a template may take
MOST_CHARACTERS = 1 << 20  # of a template: the longest in use have 30,000


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
      UserError: the template is damaged, rejects these messages, or takes more than 3 s or 512 MB.
    """
    plain = [{str(key): str(value) for key, value in message.items()} for message in messages]
    values: dict[str, Any] = {**tokens, "messages": plain, "tools": None, "documents": None}
    values["add_generation_prompt"] = add_generation_prompt
    try:
        if len(template) > MOST_CHARACTERS:
            raise confined.Refused(f"it has more than {MOST_CHARACTERS:,} characters")
        return confined.call(templates, "render", template, values, seconds=SECONDS, megabytes=MEGABYTES)
    except confined.Refused as error:
        raise UserError(f"the chat template cannot render this conversation: {error}") from None
