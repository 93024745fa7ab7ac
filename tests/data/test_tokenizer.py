"""What every kind of tokenizer promises: text comes back, special tokens are guarded, folders are checked."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax import config as configs
from gpt_jax.data import tokenizer as tokenizers
from gpt_jax.data.tokenizer import END_OF_TEXT, BpeTokenizer, ByteTokenizer, CharacterTokenizer, Tokenizer

SAMPLE = "To be, or not to be: that is the question. It's 1600; naïve 안녕하세요 😉\r\n\tthe end\n\n  the the the"
BPE = {pattern: BpeTokenizer.train([SAMPLE], 300, pattern, [END_OF_TEXT]) for pattern in ("gpt2", "gpt4", "gpt4o")}
LOSSLESS = {"bytes": ByteTokenizer(), **BPE}
EVERY = {**LOSSLESS, "characters": CharacterTokenizer(SAMPLE, [END_OF_TEXT])}


@pytest.fixture(params=EVERY)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return EVERY[request.param]


@pytest.mark.parametrize("name", LOSSLESS)
@given(text=st.text())
def test_every_text_comes_back(name: str, text: str) -> None:
    tokenizer = LOSSLESS[name]
    ids = tokenizer.encode(text, "none")
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert all(0 <= index < tokenizer.vocab_size for index in ids)


@pytest.mark.parametrize("text", ["", "\0", "\ufeffBOM", "a\r\nb\rc", " \n \t ", "e\u0301 ﬁ É", "\U0010ffff", "�"])
@pytest.mark.parametrize("name", LOSSLESS)
def test_awkward_texts_come_back(name: str, text: str) -> None:
    assert LOSSLESS[name].decode(LOSSLESS[name].encode(text)) == text


def test_batches_hold_the_same_ids_as_single_texts(tokenizer: Tokenizer) -> None:
    texts = [SAMPLE, "", SAMPLE[::-1], "the"] * 3
    batch = tokenizer.encode_batch(texts)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in texts]
    assert {ids.dtype for ids in batch} == {np.dtype(np.int32)}


def test_a_large_batch_is_encoded_in_order() -> None:
    texts = [SAMPLE * (1 + place % 7) + str(place) for place in range(3_000)]
    batch = BPE["gpt4"].encode_batch(texts)
    assert [BPE["gpt4"].decode(ids) for ids in batch] == texts


def test_kinds_number_their_vocabularies_as_documented() -> None:
    assert ByteTokenizer().encode("é") == [0xC3, 0xA9]
    assert (ByteTokenizer().vocab_size, ByteTokenizer().end_of_text) == (257, 256)
    assert (ByteTokenizer(()).vocab_size, ByteTokenizer(()).end_of_text) == (256, None)
    letters = CharacterTokenizer.train(["cab", "bad"])
    assert (letters.encode("abcd"), letters.vocab_size, letters.end_of_text) == ([0, 1, 2, 3], 4, None)
    assert all(tokenizer.vocab_size == 300 and tokenizer.end_of_text == 299 for tokenizer in BPE.values())


def test_tinyshakespeare_has_65_characters(shared) -> None:
    text = (shared / "data" / "tinyshakespeare.txt").read_text()
    tokenizer = tokenizers.make_tokenizer(configs.Characters(), [text])
    assert tokenizer.vocab_size == 65
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_characters_refuse_an_unknown_one() -> None:
    for unknown in "Zé\0😉":
        with pytest.raises(ValueError, match=r"at position 1 is not among the 2 characters"):
            CharacterTokenizer("ab").encode(f"a{unknown}b")


class TestSpecialTokens:
    TEXT = f"a{END_OF_TEXT}b"

    def test_none_raise_is_the_default(self, tokenizer: Tokenizer) -> None:
        for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch(["a", text])):
            with pytest.raises(ValueError, match="contains the special token"):
                encode(self.TEXT)

    def test_all_recognises_them(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.encode("to" + END_OF_TEXT * 2 + "be", "all")
        assert ids == tokenizer.encode("to") + [tokenizer.end_of_text] * 2 + tokenizer.encode("be")
        assert tokenizer.decode(ids) == "to" + END_OF_TEXT * 2 + "be"

    @pytest.mark.parametrize("name", LOSSLESS)
    @pytest.mark.parametrize("allowed", ["none", set(), ()])
    def test_none_takes_them_as_text(self, name: str, allowed) -> None:
        ids = LOSSLESS[name].encode(self.TEXT, allowed)
        assert LOSSLESS[name].end_of_text not in ids
        assert LOSSLESS[name].decode(ids) == self.TEXT

    def test_a_set_recognises_its_members_only(self) -> None:
        tokenizer = ByteTokenizer(["<a>", "<b>"])
        assert tokenizer.encode("<a><b>", {"<b>"}) == [*b"<a>", 257]

    def test_names_that_do_not_exist_are_refused(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(ValueError, match="'<nope>' is not a special token"):
            tokenizer.encode("a", {"<nope>"})
        with pytest.raises(ValueError, match="allowed_special must be"):
            ByteTokenizer().encode("a", "some")

    @pytest.mark.parametrize("order", [1, -1])
    def test_the_longest_of_several_that_prefix_one_another_wins(self, order: int) -> None:
        names = ["<|a", "<|a|>", "<|a|>b"][::order]
        for tokenizer in (ByteTokenizer(names), BpeTokenizer.train([SAMPLE], 300, "gpt4", names)):
            special = tokenizer.special_tokens
            ids = tokenizer.encode("<|a|>b<|a<|a|><|a|>", "all")
            assert ids == [special[name] for name in ("<|a|>b", "<|a", "<|a|>", "<|a|>")]
            assert tokenizer.encode("<|a|>b", {"<|a|>", "<|a"})[0] == special["<|a|>"]

    @pytest.mark.parametrize("names", [["<a>", "<a>"], [""]])
    def test_empty_and_repeated_names_are_refused(self, names: list[str]) -> None:
        with pytest.raises(ValueError, match="special tokens must be non-empty"):
            ByteTokenizer(names)


class TestDecoding:
    def test_bytes_that_are_not_utf8_are_kept_and_shown_as_replacements(self) -> None:
        assert ByteTokenizer().decode([0x61, 0xFF, 0x62]) == "a\ufffdb"
        assert ByteTokenizer().decode_bytes([0x61, 0xFF, 0x62]) == b"a\xffb"

    def test_arrays_and_iterators_are_taken(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.encode("the end")
        for same in (np.asarray(ids, np.uint16), jnp.asarray(ids), tuple(ids), iter(ids), list(np.asarray(ids))):
            assert tokenizer.decode(same) == "the end"
        assert tokenizer.decode([]) == tokenizer.decode(np.zeros(0, np.int32)) == ""

    def test_ids_outside_the_vocabulary_are_refused(self, tokenizer: Tokenizer) -> None:
        for bad in (-1, tokenizer.vocab_size, 2**40):
            with pytest.raises(ValueError, match=f"token id {bad} is outside the vocabulary, whose ids are 0 to"):
                tokenizer.decode([0, bad])

    def test_anything_but_a_row_of_integers_is_refused(self) -> None:
        for bad in (np.zeros((2, 2), np.int32), np.zeros(3)):
            with pytest.raises(ValueError, match="one row of integer ids"):
                ByteTokenizer().decode(bad)

    @given(st.lists(st.integers(0, 256), max_size=40))
    def test_streaming_joins_to_decode(self, ids: list[int]) -> None:
        stream = ByteTokenizer().stream()
        assert "".join([stream.push(index) for index in ids] + [stream.flush()]) == ByteTokenizer().decode(ids)

    def test_streaming_holds_back_an_unfinished_character(self) -> None:
        stream = ByteTokenizer().stream()
        assert [stream.push(value) for value in "a😉b".encode()] == ["a", "", "", "", "😉", "b"]
        assert stream.push(np.asarray([0xF0, 0x9F])) == ""
        assert stream.flush() == "\ufffd"
        assert stream.push(0x61) == stream.push(jnp.asarray(0x61)) == "a"


class TestSaving:
    def test_what_was_saved_is_loaded(self, tokenizer: Tokenizer, tmp_path) -> None:
        tokenizer.save(tmp_path / "new" / "folder")
        loaded = tokenizers.load_tokenizer(tmp_path / "new" / "folder")
        assert isinstance(loaded, Tokenizer) and type(loaded) is type(tokenizer)
        assert loaded.encode(SAMPLE) == tokenizer.encode(SAMPLE)
        assert loaded.content_hash() == tokenizer.content_hash()
        assert (loaded.special_tokens, loaded.vocab_size) == (tokenizer.special_tokens, tokenizer.vocab_size)
        assert loaded.manifest() == tokenizer.manifest()

    def test_hashes_differ_where_ids_may(self) -> None:
        others = [
            ByteTokenizer(()),
            ByteTokenizer(["<x>"]),
            ByteTokenizer(["<x>", "<y>"]),
            ByteTokenizer(["<y>", "<x>"]),
            CharacterTokenizer("ab"),
            CharacterTokenizer("abc"),
            CharacterTokenizer("ab", ["<x>"]),
            BpeTokenizer.train([SAMPLE], 299, "gpt4", [END_OF_TEXT]),
            BpeTokenizer.train([SAMPLE], 300, "gpt4", ["<x>"]),
            BpeTokenizer(BPE["gpt4"]._ranks, "gpt2", BPE["gpt4"].special_tokens),
        ]
        hashes = [tokenizer.content_hash() for tokenizer in [*EVERY.values(), *others]]
        assert len(set(hashes)) == len(hashes)
        assert all(len(digest) == 64 and int(digest, 16) for digest in hashes)

    def test_the_hash_of_bytes_stays_what_it_is(self) -> None:
        # Caches and runs are keyed by it: a change here orphans every one of them.
        digest = "9078dfaec40b7c8f"
        assert ByteTokenizer().content_hash().startswith(digest)

    def test_damage_is_named_in_one_sentence(self, tmp_path) -> None:
        BPE["gpt4"].save(tmp_path)
        manifest = tmp_path / "gpt_jax_tokenizer.json"
        ranks = tmp_path / "ranks.tiktoken"
        whole, content = json.loads(manifest.read_text()), ranks.read_bytes()
        lines = content.splitlines(keepends=True)
        damaged = {
            "hash": {manifest: json.dumps({**whole, "pattern": "gpt2"}).encode()},
            "line 1 is not base64": {ranks: b"#!$ 0\n" + content},
            "lacks the byte 0x00": {ranks: b"".join(lines[1:])},
            "its content does not match": {ranks: b"".join(lines[:-1])},
            "is damaged": {manifest: b"{"},
            "'hash'": {manifest: b'{"kind": "bpe"}'},
            "'nope'": {manifest: json.dumps({**whole, "kind": "nope"}).encode()},
        }
        for expected, files in damaged.items():
            ranks.write_bytes(content)
            manifest.write_text(json.dumps(whole))
            for file, bad in files.items():
                file.write_bytes(bad)
            with pytest.raises(ValueError, match=expected) as error:
                tokenizers.load_tokenizer(tmp_path)
            assert "\n" not in str(error.value)
        manifest.write_text(json.dumps(whole))
        ranks.unlink()
        with pytest.raises(ValueError, match=r"is damaged \('ranks.tiktoken'\)"):
            tokenizers.load_tokenizer(tmp_path)

    def test_what_is_no_tokenizer_is_named(self, tmp_path) -> None:
        with pytest.raises(FileNotFoundError, match="there is no tokenizer at"):
            tokenizers.load_tokenizer(tmp_path / "missing")
        with pytest.raises(ValueError, match="holds no tokenizer"):
            tokenizers.load_tokenizer(tmp_path)
        (tmp_path / "spiece.model").write_bytes(b"\x0a")
        with pytest.raises(ValueError, match="is not a tokenizer: give a folder"):
            tokenizers.load_tokenizer(tmp_path / "spiece.model")


def test_texts_that_utf8_cannot_hold_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"lone surrogate, U\+D800, at position 1"):
        tokenizer.encode("a\ud800")


def test_a_configuration_makes_the_tokenizer_it_describes(tmp_path) -> None:
    def unread():
        raise AssertionError("this tokenizer learns nothing from the text")
        yield

    assert tokenizers.make_tokenizer(configs.Bytes(), unread()).vocab_size == 257
    assert tokenizers.make_tokenizer(configs.Characters(), ["ba", "c"]).encode("abc") == [0, 1, 2]
    bpe = tokenizers.make_tokenizer(configs.Bpe(vocab_size=260, split="gpt2"), [SAMPLE])
    assert (bpe.vocab_size, bpe.end_of_text, bpe.manifest()["pattern"]) == (260, 259, "gpt2")
    bpe.save(tmp_path)
    loaded = tokenizers.make_tokenizer(configs.TokenizerFile(str(tmp_path)), unread())
    assert loaded.content_hash() == bpe.content_hash()
