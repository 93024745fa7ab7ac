"""The interface of every tokenizer: text to ids and back, special tokens, saving, a hash of the content."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from etils import epath

from gpt_jax.data.tokenizer.chat import Message

# Python integers, or an array of integers, whose elements have the array library's own type.
TokenIds = Iterable[Any]
AllowedSpecial = Literal["all", "none", "none_raise"] | Collection[str]


@runtime_checkable
class StreamDecoder(Protocol):
    """Decodes ids as they arrive. The returned pieces, joined, equal `decode` of all ids."""

    def push(self, ids: int | np.integer | TokenIds) -> str:
        """Returns the text that `ids` complete; the bytes of an unfinished character are held back."""

    def flush(self) -> str:
        """Returns the text still held back, with U+FFFD for an unfinished character, and starts again."""


@runtime_checkable
class Tokenizer(Protocol):
    """Maps text to ids in [0, V) and back. `allowed_special` says how the text of a special token is encoded:

    - "none_raise" (default): it raises UserError;
    - "none": it is encoded as ordinary text;
    - "all", or a collection of names: the tokens named become their one id, the others are ordinary text.
    """

    kind: ClassVar[str]
    special_tokens: dict[str, int]

    @property
    def vocab_size(self) -> int:
        """V, one more than the largest id."""

    @property
    def end_of_text(self) -> int | None:
        """The id that ends a document; None if the vocabulary has no such token."""

    @property
    def prefix(self) -> list[int]:
        """The ids that a prompt must start with, such as Llama's `<s>`; usually none. `encode` does not add them."""

    @property
    def stop(self) -> list[int]:
        """The ids that end generation: the end of a text, and the end of an assistant's turn."""

    @property
    def chats(self) -> bool:
        """Whether the tokenizer has a chat template."""

    def chat_text(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Returns the text of a conversation, special tokens by name; raises as `chat`."""

    def chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Returns the ids of a conversation; `add_generation_prompt` ends it where the assistant's answer begins.

        Raises:
          UserError: there is no chat template, or it rejects these messages.
        """

    def encode(self, text: str, allowed_special: AllowedSpecial = "none_raise") -> list[int]:
        """Returns the ids of `text`.

        Raises:
          UserError: `text` contains what the vocabulary cannot encode, or a special token under "none_raise".
        """

    def encode_batch(self, texts: Sequence[str], allowed_special: AllowedSpecial = "none_raise") -> list[np.ndarray]:
        """Returns the ids of each text as (tokens,) int32; raises as `encode`. For training data, use "none"."""

    def decode(self, ids: TokenIds) -> str:
        """Returns the text of `ids`, with U+FFFD for bytes that are not UTF-8.

        Raises:
          UserError: an id outside [0, V), or `ids` is not one row of integers.
        """

    def decode_bytes(self, ids: TokenIds) -> bytes:
        """Returns the exact bytes of `ids`; raises as `decode`."""

    def stream(self) -> StreamDecoder:
        """Returns a new incremental decoder, for printing ids as they are sampled."""

    def save(self, folder: epath.PathLike) -> None:
        """Writes a folder that `load_tokenizer` reads."""

    def content_hash(self) -> str:
        """Returns the SHA-256, in hex, of everything that decides the ids."""

    def manifest(self) -> dict[str, Any]:
        """Returns the settings to save beside the kind and the hash, as JSON values."""
