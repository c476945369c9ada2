"""Documents to sequences with loss masks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.batch import NO_TARGET
from npgpt.data import END, Document, Stream, Text, encode, encode_prompt, encode_texts
from npgpt.files.tokenizer import Tokenizer
from npgpt.runtime.errors import ConfigError, FileError

EOS = 0
words = st.text(st.characters(min_codepoint=33, exclude_categories=["Cs"]), min_size=1, max_size=20)


def document(*segments, key="", where="f:1"):
    return Document(where, [*segments, (END, True)], key)


def sequences_of(encoded):
    return [sequence.tolist() for sequence in encoded.sequences]


def masks_of(encoded):
    return [mask.tolist() for mask in encoded.sequences.loss_masks]


def counts_of(encoded):
    return {name: getattr(encoded, name) for name in ("texts", "tokens", "targets", "split", "cut", "blank", "ended")}


def test_a_short_text_is_one_sequence_and_a_long_one_overlapping_blocks(characters):
    encoded = encode_texts(characters, ["abc", "abcdefg"], max_length=4)
    a, b, c, d, e, f, g = map(ord, "abcdefg")
    assert sequences_of(encoded) == [[a, b, c, EOS], [a, b, c, d], [d, e, f, g], [g, EOS]]
    assert masks_of(encoded) == [[1] * 4, [1] * 4, [1] * 4, [1] * 2]
    assert all(sequence.dtype == np.int64 for sequence in encoded.sequences)
    assert counts_of(encoded) == dict(texts=2, tokens=12, targets=10, split=1, cut=0, blank=0, ended=2)
    assert encoded.highest == g


@given(st.lists(words, min_size=1), st.integers(2, 9))
def test_splitting_makes_every_token_but_a_texts_first_a_target_once(characters, texts, max_length):
    encoded = encode_texts(characters, texts, max_length)
    ids = [[*map(ord, text), EOS] for text in texts]

    batch = encoded.sequences.batch(range(len(encoded.sequences)))
    assert batch.targets[batch.targets != NO_TARGET].tolist() == [i for row in ids for i in row[1:]]
    assert all(2 <= len(sequence) <= max_length for sequence in encoded.sequences)
    # each sequence opens a text or goes on where the one before stopped
    rows = iter(ids)
    previous = EOS
    for sequence in encoded.sequences:
        assert sequence[0] == (next(rows)[0] if previous == EOS else previous)
        previous = sequence[-1]

    split = sum(len(row) > max_length for row in ids)
    tokens = sum(map(len, ids))
    assert counts_of(encoded) == dict(texts=len(texts), tokens=tokens, targets=tokens - len(texts), split=split, cut=0,
                                      blank=0, ended=len(texts))
    assert encoded.targets == batch.n_targets
    assert len(encoded.sequences) == sum(-(-(len(row) - 1) // (max_length - 1)) for row in ids), "no block too many"


def test_a_prompt_carries_no_loss_and_the_end_of_text_does(characters):
    encoded, _ = encode(characters, [document(("ab", False), ("cd", True))], 9)
    assert sequences_of(encoded) == [[*map(ord, "abcd"), EOS]]
    assert masks_of(encoded) == [[0, 0, 1, 1, 1]]
    assert encoded.sequences.batch([0]).targets.tolist() == [NO_TARGET, ord("c"), ord("d"), EOS, NO_TARGET]
    assert counts_of(encoded) == dict(texts=1, tokens=5, targets=3, split=0, cut=0, blank=0, ended=1)


@pytest.mark.parametrize("prompt, completion, max_length, expected, cut", [
    ("abcdef", "gh", 6, ["defgh."], 3),      # as much of the prompt as leaves room
    ("abcdef", "ghij", 6, ["defghi", "ij."], 3),  # and half a sequence at the least
    ("ab", "cdefghij", 6, ["abcdef", "fghij."], 0),
    ("abcdef", "", 2, ["f."], 5),
    ("abcdef", "gh", 3, ["fgh", "h."], 5),
    ("abcdef", "ghijklmn", 5, ["efghi", "ijklm", "mn."], 4),
])
def test_of_a_long_prompt_the_end_is_kept(characters, prompt, completion, max_length, expected, cut):
    segments = [(prompt, False)] + ([(completion, True)] if completion else [])
    encoded, _ = encode(characters, [document(*segments)], max_length)
    assert ["".join(chr(i) if i else "." for i in sequence) for sequence in encoded.sequences] == expected
    assert masks_of(encoded)[0][:1] == [0]
    learned = len(completion) + 1
    assert counts_of(encoded) == dict(texts=1, tokens=len(prompt) + learned, targets=learned, split=1, cut=cut, blank=0,
                                      ended=1)


def test_a_block_in_which_nothing_is_learned_is_left_out_and_counted(characters):
    given = document(("a", False), ("b", True), (END, True), ("cdefghijkl", False), ("m", True))
    encoded, _ = encode(characters, [given], 4)
    blocks = ["".join(chr(i) if i else "." for i in sequence) for sequence in encoded.sequences]
    assert blocks == ["ab.c", "lm."]
    assert masks_of(encoded) == [[0, 1, 1, 0], [0, 1, 1]]
    assert counts_of(encoded) == dict(texts=1, tokens=15, targets=4, split=1, cut=8, blank=0, ended=1)


def literal(words):
    return Text.join([Text.literal(words)])


def test_special_tokens_are_plain_text_but_in_a_template(characters):
    """The text is cut only at a special token that the template spells out."""
    read = []

    class Noting(type(characters)):
        def encode_batch(self, texts, split_special_tokens=False):
            read.extend(texts)
            return super().encode_batch(texts, split_special_tokens)

    prompt = Text.join([Text.literal("x<a>y"), "<a>z", Text.literal("<b><a>"), "<b", Text.literal(">")])
    given = [document((prompt, False), ("<end>", True), where="f:1")]
    encoded, _ = encode(Noting(), given, 64)
    plain = [*map(ord, "y<a>z")]
    assert sequences_of(encoded) == [[ord("x"), 1, *plain, 2, 1, *map(ord, "<b>"), *map(ord, "<end>"), EOS]]
    assert [text for text in read if text] == ["x", "y<a>z", "<b>", "<end>"]
    assert encoded.spelled == 3
    assert encode(characters, [document((prompt, True))], 64)[0].sequences.loss_masks[0].all()

    parsed, _ = encode(characters, given, 64, split_special_tokens=False)
    assert sequences_of(parsed) == [[ord("x"), 1, ord("y"), 1, ord("z"), 2, 1, 2, EOS]]
    assert parsed.spelled == 0


def test_special_tokens_in_a_stream(characters):
    def stream():
        return [document((Stream(["a<a>", "b"]), True))]

    plain, _ = encode(characters, stream(), 64)
    assert sequences_of(plain) == [[*map(ord, "a<a>b"), EOS]] and plain.spelled == 1
    assert sequences_of(encode(characters, stream(), 64, split_special_tokens=False)[0]) == [[97, 1, 98, EOS]]


def test_a_text_that_ends_with_an_end_of_text_gets_no_second(characters):
    parsed, _ = encode(characters, [document(("a<end>", True)), document((Stream(["b<end>"]), True))], 64,
                       split_special_tokens=False)
    assert sequences_of(parsed) == [[97, EOS], [98, EOS]]
    assert parsed.ended == 2
    assert sequences_of(encode(characters, [document((literal("a<end>"), True))], 64)[0]) == [[97, EOS]]
    twice = [document((literal("<end>"), False), ("<end>b", True))]
    assert sequences_of(encode(characters, twice, 64, split_special_tokens=False)[0]) == [[EOS, EOS, 98, EOS]]


def test_a_prompt_has_the_ids_it_is_learned_with(characters):
    texts = [Text.join([Text.literal("<a>"), "<b>"]), END, "c"]
    assert encode_prompt(characters, texts).tolist() == [1, *map(ord, "<b>"), EOS, ord("c")]
    assert encode_prompt(characters, texts, split_special_tokens=False).tolist() == [1, 2, EOS, ord("c")]


def test_the_longest_special_token_is_found():
    class Tokens:
        eos_id, end_ids, start_ids = 0, [0], ()
        special_tokens = {"<a": 1, "<a>": 2}  # noqa: RUF012

        def encode_batch(self, texts, split_special_tokens):
            return [np.array([*map(ord, text)], np.int64) for text in texts]

    assert encode_prompt(Tokens(), [literal("<a><ab")]).tolist() == [2, 1, ord("b")]


conversations = st.lists(st.lists(st.tuples(words, st.booleans()), min_size=1, max_size=4), min_size=1, max_size=5)


@given(conversations, st.integers(2, 12))
def test_nothing_is_lost_unseen(characters, texts, max_length):
    """Every id is in a sequence or counted as cut. A learned id is in one, once as a target or as the first id."""
    encoded, _ = encode(characters, [document(*segments) for segments in texts], max_length)
    for text in texts:
        one, _ = encode(characters, [document(*text)], max_length)
        ids = [ord(character) for part, _ in text for character in part] + [EOS]
        mask = [learned for part, learned in text for _ in part] + [True]
        batch = one.sequences.batch(range(len(one.sequences)))
        learned = [i for i, marked in zip(ids, mask, strict=True) if marked]
        targets = batch.targets[batch.targets != NO_TARGET].tolist()
        assert targets == learned[mask[0]:]
        assert one.cut == len(ids) - len(set().union(*(range(start, start + length) for start, length in zip(
            one.sequences._starts, one.sequences.lengths, strict=True))))
        assert one.cut <= len(ids) - sum(mask)
        assert all(2 <= len(sequence) <= max_length for sequence in one.sequences)
    assert encoded.tokens == sum(len(part) for text in texts for part, _ in text) + len(texts)
    assert encoded.ended == encoded.texts == len(texts)
    batch = encoded.sequences.batch(range(len(encoded.sequences)))
    assert encoded.targets == batch.n_targets


def test_a_document_without_ids_is_blank(characters):
    encoded = encode_texts(characters, [" ", "a"], max_length=2)
    assert sequences_of(encoded) == [[ord("a"), EOS]]
    assert counts_of(encoded) == dict(texts=1, tokens=2, targets=1, split=0, cut=0, blank=1, ended=1)
    encoded, held_out = encode(characters, [Document("f:1", [], "")] * 3, 2)
    assert (len(encoded.sequences), encoded.blank, len(held_out.sequences)) == (0, 3, 0)
    assert encode(characters, [], 2)[0].texts == 0


def test_a_stream_is_one_text(characters):
    pieces = ["abc", "d", "", "efgh"]
    given = [document(("xy", True)), document((Stream(pieces), True)), document(("z", True))]
    encoded, _ = encode(characters, given, 4)
    assert sequences_of(encoded) == sequences_of(encode_texts(characters, ["xy", "abcdefgh", "z"], 4))
    assert encoded[1:] == encode_texts(characters, ["xy", "abcdefgh", "z"], 4)[1:]
    prompted, _ = encode(characters, [document(("pq", False), (Stream(pieces), True), ("!", True))], 4)
    assert sequences_of(prompted)[0] == [*map(ord, "pqab")]
    assert masks_of(prompted)[0] == [0, 0, 1, 1]
    assert prompted.targets == 10


def test_a_text_has_the_ids_it_has_alone(characters):
    """The number of texts that the tokenizer gets together does not matter."""
    texts = ["a" * n for n in (3, 300_000, 2, 200_000, 100_000, 1)]
    encoded = encode_texts(characters, texts, max_length=300_001)
    assert [len(sequence) for sequence in encoded.sequences] == [len(text) + 1 for text in texts]


@pytest.mark.parametrize("max_length", [1, 0, -3])
def test_blocks_too_short_to_predict_anything_are_refused(characters, max_length):
    with pytest.raises(ConfigError, match=f"max_length is {max_length}, expected at least 2"):
        encode_texts(characters, ["a"], max_length)


def test_a_full_disk_is_said(characters, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/proc")
    with pytest.raises(FileError, match=r"cannot write the tokens into a temporary file: .*; set TMPDIR to another"):
        encode_texts(characters, ["a"], 3)


# Holding out


def test_a_hash_holds_documents_out_and_others_move_none(characters):
    documents = [document((f"{n}", False), (f"x{m}", True), key=str(n)) for n in range(500) for m in range(2)]
    train, held_out = encode(characters, documents, 64, val_fraction=0.2)
    assert train.texts + held_out.texts == 1000
    assert 140 < held_out.texts < 260
    chosen = {tuple(sequence) for sequence in sequences_of(held_out)}
    assert not chosen & {tuple(sequence) for sequence in sequences_of(train)}
    keys = {sequence[:-3] for sequence in chosen}
    assert len(keys) == held_out.texts / 2, "documents of one key stay together"
    again = encode(characters, documents[::-1][:600], 64, val_fraction=0.2)[1]
    assert chosen >= {tuple(sequence) for sequence in sequences_of(again)}
    assert len({*map(tuple, sequences_of(again))}) > 60
    more = encode(characters, documents, 64, val_fraction=0.4)[1]
    assert chosen < {tuple(sequence) for sequence in sequences_of(more)}
    assert encode(characters, documents, 64)[1].texts == 0


def test_blocks_of_a_stream_are_held_out(characters):
    text = "".join(chr(i) for i in np.random.default_rng(0).integers(33, 1000, 5000))
    whole, _ = encode(characters, [document((Stream([text]), True))], 11)
    train, held_out = encode(characters, [document((Stream([text]), True))], 11, val_fraction=0.3)
    assert 100 < len(held_out.sequences) < 200
    assert sorted(sequences_of(train) + sequences_of(held_out)) == sorted(sequences_of(whole))
    assert (train.texts, held_out.texts, train.split) == (1, 0, 1)
    assert train.targets + held_out.targets == whole.targets == 5000
    assert train.tokens + held_out.tokens == whole.tokens == 5001
    assert train.ended + held_out.ended == 1


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2, float("nan")])
def test_fractions_that_cannot_be(characters, fraction):
    with pytest.raises(ConfigError, match=f"val_fraction is {fraction}"):
        encode(characters, [], 4, fraction)


# Fingerprints


def test_the_fingerprint_is_of_all_that_is_trained_on(characters):
    def fingerprint(texts, max_length=4, learned=True):
        return encode(characters, [document((text[:1], learned), (text[1:], True)) for text in texts],
                      max_length)[0].fingerprint

    first = fingerprint(["abc", "defgh"])
    assert len(first) == 64
    assert fingerprint(["abc", "defgh"]) == first
    others = [fingerprint(["abc", "defgi"]), fingerprint(["defgh", "abc"]), fingerprint(["abc"]),
              fingerprint(["abc", "defgh"], 5), fingerprint(["abc", "defgh"], 4, False)]
    assert len({first, *others}) == 6


def test_what_is_encoded_lies_in_a_file(characters, memory):
    """In the end, memory holds far less than the ids and the masks, which are 500 kB here."""
    encoded, held, _ = memory(lambda: encode(characters, (document(("a" * 100, True)) for _ in range(1000)), 256)[0])
    assert encoded.tokens == 101_000
    assert held < 60_000
    with pytest.raises(ValueError, match="read-only"):
        encoded.sequences._values[0] = 1


def test_texts_that_begin_alike_are_held_out_apart():
    documents = [Document("", [(f"alike {i}", True), (END, True)], f"alike {i}") for i in range(40)]
    trained, held_out = encode(Tokenizer.from_pretrained("tiny"), documents, 64, 0.5)
    assert trained.texts > 10
    assert held_out.texts > 10
