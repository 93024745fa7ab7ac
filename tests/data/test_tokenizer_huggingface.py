"""Hugging Face `tokenizer.json` files of every common make, built here with the `tokenizers` library."""

import json
import warnings
from pathlib import Path

import pytest
import tokenizers as library
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from gpt_jax.data.tokenizer import END_OF_TEXT, BpeTokenizer, HuggingFaceTokenizer, load_tokenizer

SAMPLE = "To be, or not to be: that is the question. naïve 안녕하세요 😉\n\n  the the the"
TRAINED = BpeTokenizer.train([SAMPLE], 300, "gpt4", [END_OF_TEXT])
BYTEWISE = HuggingFaceTokenizer(TRAINED.to_hugging_face().to_str())


def words(*names: str, split: pre_tokenizers.PreTokenizer | None = None) -> library.Tokenizer:
    tokenizer = library.Tokenizer(
        models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = split or pre_tokenizers.Whitespace()
    return tokenizer


def pieces_with_byte_fallback() -> library.Tokenizer:
    """As Llama 2's: spaces become ▁, what the vocabulary lacks becomes bytes."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{value:02X}>": value + 3 for value in range(256)}}
    vocab |= {piece: 259 + place for place, piece in enumerate(["▁", "a", "b", "▁a", "ab", "▁ab"])}
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b")]
    tokenizer = library.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in ("<unk>", "<s>", "</s>")]
    )
    return tokenizer


def load(tokenizer: library.Tokenizer) -> HuggingFaceTokenizer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return HuggingFaceTokenizer(tokenizer.to_str())


def test_a_vocabulary_of_whitespace_words_maps_here_i_am_to_0_1_2(tmp_path: Path) -> None:
    words("Here", "I", "am", "[UNK]").save(str(tmp_path / "tokenizer.json"))
    with pytest.warns(UserWarning, match="does not preserve every text: it loses .*characters outside its vocabulary"):
        tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("Here I am") == [0, 1, 2]
    assert tokenizer.decode([0, 1, 2]) == "Here I am"
    assert tokenizer.vocab_size == 4


class TestByteLevel:
    """As GPT-2's and Llama 3's."""

    @given(st.text())
    def test_every_text_comes_back(self, text: str) -> None:
        ids = BYTEWISE.encode(text, "none")
        assert ids == TRAINED.encode(text, "none")
        assert BYTEWISE.decode(ids) == text
        assert BYTEWISE.decode_bytes(ids) == text.encode()

    def test_no_loss_no_warning(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert HuggingFaceTokenizer(TRAINED.to_hugging_face().to_str()).losses == []

    def test_half_a_character_keeps_its_bytes(self) -> None:
        ids = BYTEWISE.encode("🙈")
        assert BYTEWISE.decode_bytes(ids[:1]) == "🙈".encode()[: len(BYTEWISE.decode_bytes(ids[:1]))]
        assert BYTEWISE.decode(ids[:1]) == "\ufffd"
        stream = BYTEWISE.stream()
        assert [stream.push(index) for index in ids] == [""] * (len(ids) - 1) + ["🙈"]

    def test_the_largest_id_bounds_the_vocabulary(self) -> None:
        assert (BYTEWISE.vocab_size, BYTEWISE.end_of_text) == (300, 299)
        with pytest.raises(ValueError, match="token id 300 is outside the vocabulary"):
            BYTEWISE.decode([300])


class TestByteFallback:
    TOKENIZER = load(pieces_with_byte_fallback())

    @pytest.mark.parametrize("text", ["ab", "a ab  b", "안 a", " a", "😉😉"])
    def test_texts_come_back_also_when_streamed(self, text: str) -> None:
        ids = self.TOKENIZER.encode(text)
        assert self.TOKENIZER.decode(ids) == text
        assert self.TOKENIZER.decode_bytes(ids) == text.encode()
        stream = self.TOKENIZER.stream()
        parts = [stream.push(index) for index in ids]
        assert "".join([*parts, stream.flush()]) == text
        assert not any("\ufffd" in part for part in parts)

    def test_no_template_adds_tokens(self) -> None:
        templated = pieces_with_byte_fallback()
        templated.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        tokenizer = load(templated)
        assert tokenizer.encode("ab") == self.TOKENIZER.encode("ab") == [264]
        assert tokenizer.end_of_text == 2
        assert tokenizer.decode([264, 2]) == "ab</s>"


class TestSpecialTokens:
    def test_every_choice(self) -> None:
        text, plain = f"to{END_OF_TEXT}be", TRAINED.encode
        assert BYTEWISE.encode(text, "all") == [*plain("to"), 299, *plain("be")]
        assert BYTEWISE.encode(text, {END_OF_TEXT}) == [*plain("to"), 299, *plain("be")]
        assert BYTEWISE.encode(text, "none") == plain(text, "none")
        assert BYTEWISE.encode(text, set()) == plain(text, "none")
        with pytest.raises(ValueError, match="contains the special token"):
            BYTEWISE.encode(text)

    def test_the_longest_of_several_that_prefix_one_another_wins(self) -> None:
        tokenizer = load(BpeTokenizer.train([SAMPLE], 300, "gpt4", ["<|a", "<|a|>", "<|a|>b"]).to_hugging_face())
        special = tokenizer.special_tokens
        ids = tokenizer.encode("<|a|>b<|a<|a|><|a|>", "all")
        assert ids == [special[name] for name in ("<|a|>b", "<|a", "<|a|>", "<|a|>")]
        assert tokenizer.encode("<|a|>b", {"<|a|>"}) == [special["<|a|>"], *b"b"]

    def test_one_that_takes_the_spaces_beside_it_takes_them(self) -> None:
        made = words("a", "b", "[UNK]", split=pre_tokenizers.Split(" ", "isolated"))
        made.add_special_tokens([AddedToken("<m>", lstrip=True, special=True)])
        assert load(made).encode("a <m>b", "all") == [0, 3, 1]

    def test_one_that_is_also_a_word_is_never_made_by_ordinary_text(self) -> None:
        made = words("a", "<s>", "[UNK]", split=pre_tokenizers.WhitespaceSplit())
        made.add_special_tokens([AddedToken("<s>", special=True)])
        tokenizer = load(made)
        assert tokenizer.encode("a <s>", "all") == [0, 1]
        with pytest.raises(ValueError, match="cannot encode '<s>' as ordinary text"):
            tokenizer.encode("a <s>", "none")

    def test_added_tokens_that_are_not_special_are_always_words(self) -> None:
        made = TRAINED.to_hugging_face()
        made.add_tokens(["  the"])
        tokenizer = load(made)
        assert 300 in tokenizer.encode("  the", "none")
        assert tokenizer.decode(tokenizer.encode(SAMPLE)) == SAMPLE


class TestLosses:
    @pytest.mark.parametrize(
        ("normalizer", "loss"),
        [
            (normalizers.Lowercase(), "capital letters"),
            (normalizers.NFC(), "composed forms of letters"),
            (normalizers.NFKC(), "compatibility forms of letters"),
            (normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]), "accents"),
            (normalizers.Strip(), "spaces at the ends"),
            (normalizers.BertNormalizer(), "capital letters"),
            (normalizers.Replace("  ", " "), "runs of spaces"),
        ],
    )
    def test_a_lossy_normaliser_is_reported(
        self, tmp_path: Path, normalizer: normalizers.Normalizer, loss: str
    ) -> None:
        made = TRAINED.to_hugging_face()
        made.normalizer = normalizer
        made.save(str(tmp_path / "tokenizer.json"))
        name = json.loads(made.to_str())["normalizer"]["type"]
        with pytest.warns(UserWarning, match=r"tokenizer.json does not preserve every text \(normalised by ") as caught:
            tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
        assert loss in tokenizer.losses and loss in str(caught[0].message)
        assert name == "Sequence" or name in tokenizer.normalisers


class TestFiles:
    def test_padding_and_truncation_in_the_file_are_ignored(self) -> None:
        made = TRAINED.to_hugging_face()
        made.enable_padding(length=50)
        made.enable_truncation(2)
        assert [ids.tolist() for ids in load(made).encode_batch(["the end", "a"])] == [
            TRAINED.encode("the end"),
            TRAINED.encode("a"),
        ]

    def test_what_was_saved_is_loaded(self, tmp_path: Path) -> None:
        BYTEWISE.save(tmp_path)
        loaded = load_tokenizer(tmp_path)
        assert loaded.content_hash() == BYTEWISE.content_hash()
        assert loaded.encode(SAMPLE) == BYTEWISE.encode(SAMPLE)
        content = (tmp_path / "tokenizer.json").read_text()
        (tmp_path / "tokenizer.json").write_text(content.replace('"Ġt"', '"Ġŧ"'))
        with pytest.raises(ValueError, match="is damaged"):
            load_tokenizer(tmp_path)

    def test_layout_does_not_change_the_hash(self) -> None:
        definition = json.loads(TRAINED.to_hugging_face().to_str())
        compact = HuggingFaceTokenizer(json.dumps(dict(reversed(definition.items())), separators=(",", ":")))
        assert compact.content_hash() == BYTEWISE.content_hash()
        definition["added_tokens"] = []
        assert HuggingFaceTokenizer(json.dumps(definition)).content_hash() != BYTEWISE.content_hash()

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"model": 3}', b"\xff\xfe", b"null"])
    def test_damage_is_named_in_one_sentence(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(ValueError, match="tokenizer.json is not") as error:
            load_tokenizer(tmp_path)
        assert "\n" not in str(error.value)


def test_merges_are_those_of_the_files_own_list() -> None:
    """As the tokenizer that wrote the file merges; of pieces, from letters; None where words are looked up whole."""
    assert BYTEWISE.merges is not None
    for index in range(TRAINED.vocab_size):
        steps = BYTEWISE.merges(index)
        assert steps == TRAINED.merges(index)
    letters = load(pieces_with_byte_fallback()).merges
    assert letters is not None
    whole = "▁ab".encode()
    assert letters(264) == [["▁".encode(), b"a", b"b"], ["▁a".encode(), b"b"], [whole]]
    assert letters(1) == [] and letters(3) == [], "neither special tokens nor single bytes are merged"
    assert load(words("Here", "[UNK]")).merges is None
