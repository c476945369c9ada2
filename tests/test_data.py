"""Reading texts, cutting them into sequences, and the order of an epoch."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.batch import NO_TARGET, Batch
from npgpt.data import batches, encode_texts, read_texts
from npgpt.errors import ConfigError, FileError, FormatError

EOS = 0


class Characters:
    """A tokenizer whose ids are code points; the end of a text is 0. A space has no id."""

    eos_id = EOS

    def encode(self, text):
        return np.array([ord(character) for character in text if character != " "], dtype=np.int64)


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# Reading


@pytest.mark.parametrize(
    "content, texts",
    [
        ("one\ntwo\n", ["one", "two"]),
        ("one\ntwo", ["one", "two"]),
        ("one\r\ntwo\r\n", ["one", "two"]),
        ("\n  \n\tone  \n\n\ntwo\t\n\n", ["\tone", "two"]),
        (b"\xef\xbb\xbfone\n", ["one"]),
        ("na\u00efve \u2603\n", ["na\u00efve \u2603"]),
        # these end no line, although str.splitlines thinks so
        ("one\u2028still one\x0c!\n", ["one\u2028still one\x0c!"]),
        ('{"text": "not JSON here"}\n', ['{"text": "not JSON here"}']),
    ],
)
def test_a_text_file_holds_a_document_a_line(tmp_path, content, texts):
    assert read_texts(written(tmp_path, "data.txt", content)) == texts


def test_a_jsonl_file_holds_a_text_under_its_name(tmp_path):
    lines = [
        '{"text": "one\\ntwo "}',
        '  {"id": 3, "text": "na\\u00efve \\ud83d\\ude00"}\r',
        "",
        '{"text": "  "}',
        '{"text": "\u2028end"}',
    ]
    texts = ["one\ntwo ", "na\u00efve \U0001f600", "\u2028end"]
    assert read_texts(written(tmp_path, "data.jsonl", "\n".join(lines))) == texts
    assert read_texts(str(written(tmp_path, "bom.JSONL", "\ufeff" + "\n".join(lines)))) == texts


@pytest.mark.parametrize(
    "line, reason",
    [
        ("one", "not valid JSON"),
        ('{"text": "one"', "not valid JSON"),
        ('{"text": "one"} {"text": "two"}', "not valid JSON"),
        ("9" * 5000, "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"txt": "one"}', 'no "text"'),
        ('{"text": 1}', "not a string"),
        ('{"text": null}', "not a string"),
        ('{"text": ["one"]}', "not a string"),
        ('["text"]', "not an object"),
        ('"text"', "not an object"),
        ("null", "not an object"),
        ('{"text": "half a pair: \\ud83d"}', "not valid Unicode"),
    ],
)
def test_a_wrong_jsonl_line_is_named(tmp_path, line, reason):
    path = written(tmp_path, "data.jsonl", '{"text": "one"}\n\n' + line + '\n{"text": "two"}\n')
    with pytest.raises(FormatError) as caught:
        read_texts(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:3: ") and reason in message and message.endswith('expected {"text": "..."}')
    assert "\n" not in message


@pytest.mark.parametrize("name", ["data.txt", "data.jsonl"])
def test_bytes_that_are_not_utf8_are_named(tmp_path, name):
    path = written(tmp_path, name, b"\xef\xbb\xbfone\ntwo\nthr\xe9e\nfour\n")
    with pytest.raises(FormatError, match=r":3: not UTF-8 text"):
        read_texts(path)
    with pytest.raises(FormatError, match=r":1: not UTF-8 text"):
        read_texts(written(tmp_path, name, "one\n".encode("utf-16")))


@pytest.mark.parametrize("name", ["data.txt", "data.jsonl"])
@pytest.mark.parametrize("content", [b"", b"\n \r\n\t\n", b"\xef\xbb\xbf"])
def test_a_file_without_text_is_an_error(tmp_path, name, content):
    with pytest.raises(FormatError, match="holds no text"):
        read_texts(written(tmp_path, name, content))


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(FileError, match=r"cannot read .*missing\.txt: No such file"):
        read_texts(tmp_path / "missing.txt")
    with pytest.raises(FileError, match="cannot read"):
        read_texts(tmp_path)


@given(st.lists(st.text().filter(str.strip), min_size=1))
def test_any_text_survives_jsonl(tmp_path_factory, texts):
    lines = "\n".join(json.dumps({"text": text}, ensure_ascii=len(text) % 2 == 0) for text in texts)
    assert read_texts(written(tmp_path_factory.getbasetemp(), "any.jsonl", lines)) == texts


@given(st.binary() | st.text().map(str.encode), st.sampled_from(["any.txt", "any.jsonl"]))
def test_any_file_is_read_or_refused_in_one_line(tmp_path_factory, content, name):
    try:
        texts = read_texts(written(tmp_path_factory.getbasetemp(), name, content))
    except FormatError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert texts and all(text.strip() for text in texts)


# Sequences


def test_a_short_text_is_one_sequence_and_a_long_one_overlapping_blocks():
    encoded = encode_texts(Characters(), ["abc", "abcdefg"], max_length=4)
    a, b, c, d, e, f, g = map(ord, "abcdefg")
    expected = [[a, b, c, EOS], [a, b, c, d], [d, e, f, g], [g, EOS]]
    assert [sequence.tolist() for sequence in encoded.sequences] == expected
    assert all(sequence.dtype == np.int64 for sequence in encoded.sequences)
    assert (encoded.texts, encoded.tokens, encoded.targets, encoded.split) == (2, 12, 10, 1)


@given(st.lists(st.text(st.characters(min_codepoint=33), min_size=1), min_size=1), st.integers(2, 9))
def test_splitting_makes_every_token_but_a_texts_first_a_target_once(texts, max_length):
    encoded = encode_texts(Characters(), texts, max_length)
    ids = [[*map(ord, text), EOS] for text in texts]

    batch = Batch.from_sequences(encoded.sequences)
    assert batch.targets[batch.targets != NO_TARGET].tolist() == [i for row in ids for i in row[1:]]
    assert all(2 <= len(sequence) <= max_length for sequence in encoded.sequences)
    # each sequence opens a text or goes on where the one before stopped
    rows = iter(ids)
    previous = EOS
    for sequence in encoded.sequences:
        assert sequence[0] == (next(rows)[0] if previous == EOS else previous)
        previous = sequence[-1]

    assert encoded.texts == len(texts)
    assert encoded.tokens == sum(map(len, ids))
    assert encoded.targets == batch.n_targets == encoded.tokens - encoded.texts
    assert encoded.split == sum(len(row) > max_length for row in ids)
    assert len(encoded.sequences) == sum(-(-(len(row) - 1) // (max_length - 1)) for row in ids), "no block too many"


def test_a_text_without_ids_gives_no_sequence():
    encoded = encode_texts(Characters(), [" ", "a"], max_length=2)
    assert [sequence.tolist() for sequence in encoded.sequences] == [[ord("a"), EOS]]
    assert (encoded.texts, encoded.tokens, encoded.targets, encoded.split) == (2, 3, 1, 0)


@pytest.mark.parametrize("max_length", [1, 0, -3])
def test_blocks_too_short_to_predict_anything_are_refused(max_length):
    with pytest.raises(ConfigError, match=f"max_length is {max_length}, expected at least 2"):
        encode_texts(Characters(), ["a"], max_length)


# Order


@given(st.integers(0, 200), st.integers(1, 70), st.integers(0, 2**40), st.integers(0, 1000))
def test_an_epoch_takes_each_sequence_once(n, batch_size, seed, epoch):
    order = batches(n, batch_size, seed, epoch)
    assert sorted(i for batch in order for i in batch.tolist()) == list(range(n))
    assert [len(batch) for batch in order] == [batch_size] * (n // batch_size) + [n % batch_size] * (n % batch_size > 0)


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(batch_size=4, seed=7, epoch=1):
        return np.concatenate(batches(50, batch_size, seed, epoch)).tolist()

    first = order()
    np.random.seed(0)  # noqa: NPY002 - that a global state has no say is what is tested
    assert order() == first
    assert order(batch_size=7) == first
    orders = {tuple(order(seed=seed, epoch=epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16 and tuple(range(50)) not in orders


@pytest.mark.parametrize("batch_size", [0, -1])
def test_an_empty_batch_is_refused(batch_size):
    with pytest.raises(ConfigError, match=f"batch_size is {batch_size}, expected at least 1"):
        batches(5, batch_size, 0, 0)
