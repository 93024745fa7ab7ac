"""The documents of a batch are found again from its step: their tokens and their bytes are those of the rows."""

from pathlib import Path

import numpy as np
import pytest

from gpt_jax.config import Bytes, Characters, Copy, Text, TokenizerConfig
from gpt_jax.data import open_data
from gpt_jax.data.rows import ShuffledRows
from gpt_jax.data.sources import Span, sources

T = 16


@pytest.mark.parametrize("tokenizer", [Bytes(), Characters()], ids=["with an end of text", "without"])
def test_rows_consist_of_the_documents_that_are_told(tmp_path: Path, tokenizer: TokenizerConfig) -> None:
    """Over two epochs, of which the second is shifted; rows with parts of several short documents are among them."""
    words = np.random.default_rng(0)
    for number in range(30):
        text = " ".join(words.choice(["red", "blüe", "one"], int(words.integers(1, 25))))
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    config = Text(path=str(tmp_path), validation_fraction=0.3, tokenizer=tokenizer)
    data = open_data(config, T, seed=5, cache_dir=tmp_path / "cache", progress=False)
    assert isinstance(data.train, ShuffledRows) and data.train_rows is not None
    stream, decode = data.train.stream, data.tokenizer.decode_bytes
    ends = np.append(stream.starts[1:], len(stream.tokens) - stream.ended)
    texts = [stream.tokens[a + stream.ended : b] for a, b in zip(stream.starts, ends, strict=True)]
    several = 0
    for step in range(2 * data.train_rows // 4):
        batch, spans = data.batch(step, 4), sources(data, step, 4)
        for row in range(4):
            mine = [span for span in spans if span.row == row]
            several += len(mine) > 1
            # The end of text is in the vocabulary's last place and in no document.
            whole = [*batch.tokens[row], batch.targets[row][-1]]
            count = int((batch.segments[row] > 0).sum())
            held = [*whole[:count], batch.targets[row][count - 1]]
            held = [token for token in held if token != data.tokenizer.end_of_text]
            told = [token for s in mine for token in texts[s.document][s.first : s.stop].tolist()]
            assert held == told
            for span in mine:
                assert span.byte == len(decode(texts[span.document][: span.first].tolist()))
    assert several > 5
    assert sources(data, 3, 4) == sources(data, 3, 4) != sources(data, 4, 4)


def test_rows_of_a_task_are_told_by_their_numbers() -> None:
    data = open_data(Copy(symbols=8, length=4, validation_rows=10), T, seed=0)
    assert sources(data, 3, 2) == [Span(0, 6, 0, 9, None), Span(1, 7, 0, 9, None)]
