"""Tries out the steps of a `tokenizer.json`. `confined.call` runs this in an interpreter with limits.

Imports nothing of gpt_jax, since that interpreter must start fast.
"""

import tokenizers


def try_out(definition: str, texts: list[str]) -> None:
    """Encodes and decodes the texts. Raises what the library raises; it may also panic, hang or take all memory."""
    tokenizer = tokenizers.Tokenizer.from_str(definition)
    for text in texts:
        tokenizer.encode(text, add_special_tokens=False)
    tokenizer.decode(tokenizer.encode("a", add_special_tokens=True).ids, skip_special_tokens=False)
