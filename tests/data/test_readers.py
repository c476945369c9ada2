"""Files to records."""

import itertools
import json
import random
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from npgpt.data import is_text, read_records, read_texts, readers, text_files
from npgpt.runtime.errors import ConfigError, FileError, FormatError

ANY_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def fields_of(path, **options):
    """Return the fields of each record, with a stream's text in one piece."""
    return [{name: "".join(value) if isinstance(value, readers.Stream) else value
             for name, value in record.fields.items()} for record in read_records(path, **options)]


def texts_of(path, **options):
    return [fields["text"] for fields in fields_of(path, **options)]


def places_of(path, **options):
    return [record.where.removeprefix(f"{path}:") for record in read_records(path, **options)]


def refusal(path, **options):
    """Return the message for a file that cannot be read, without its path."""
    with pytest.raises(FormatError) as caught:
        fields_of(path, **options)
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith(f"{path}:")
    return str(caught.value).removeprefix(f"{path}:")


# Plain text


@pytest.mark.parametrize("content, texts", [
    ("one\ntwo\n", ["one", "two"]),
    ("one\ntwo", ["one", "two"]),
    ("one\r\ntwo\r\n", ["one", "two"]),
    ("one\rtwo\r\r three", ["one", "two", " three"]),
    ("\n  \n\tone  \n\n\ntwo\t\n\n", ["\tone", "two"]),
    (b"\xef\xbb\xbfone\n", ["one"]),
    ("na\u00efve \u2603\n", ["na\u00efve \u2603"]),
    ("one\u2028still one\x0c!\n", ["one\u2028still one\x0c!"]),  # these end no line, although str.splitlines thinks so
])
def test_a_text_file_holds_a_text_a_line(written, content, texts):
    path = written("data.txt", content)
    assert texts_of(path) == texts == read_texts(path)
    assert texts_of(written("data", content)) == texts  # as any other file does


@pytest.mark.parametrize("split", readers.SPLITS)
def test_json_objects_in_a_text_file_are_warned_of(written, split):
    line = '{"text": "not JSON here"}'
    path = written("data.txt", f"{line}\n\n{line}")
    with pytest.warns(UserWarning, match=r"data\.txt: the first lines are JSON objects, but are read as plain text; "
                                         r"to read their fields, let the file.s name end in \.jsonl"):
        assert "".join(texts_of(path, split=split)).startswith(line)
    for content in ("{}\nno JSON", "1\n2\n", "[]\n", "a {}\n", "\n", "[" * 100_000):
        assert texts_of(written("data.txt", content), split=split) or not content.strip()


@pytest.mark.parametrize("content, texts, places", [
    ("one<|endoftext|>two<|endoftext|>", ["one", "two"], ["1", "1"]),
    ("one\n two \n<|endoftext|>\n\n  three<|endoftext|>\n<|endoftext|><|endoftext|>four\n",
     ["one\n two", "three", "four"], ["1", "5", "6"]),
    ("\ufeff<|endoftext|>a<|endoftext|<|endoftext|>|>b<|end", ["a<|endoftext|", "|>b<|end"], ["1", "1"]),
    ("no mark\r\nat all", ["no mark\nat all"], ["1"]),
    ("<|endoftext|>\n", [], []),
])
@pytest.mark.parametrize("piece", [1, 2, 7, 1 << 20])
def test_texts_may_stand_between_marks(written, monkeypatch, content, texts, places, piece):
    monkeypatch.setattr(text_files, "PIECE", piece)
    path = written("data.txt", content)
    assert texts_of(path, split="<|endoftext|>") == texts
    assert places_of(path, split="<|endoftext|>") == places


@given(st.text("=-a\n ", max_size=40), st.sampled_from(["==", "=-=", "=\n"]), st.integers(1, 5))
@ANY_FILE
def test_any_mark_divides_as_in_one_piece(tmp_path_factory, content, mark, size):
    path = tmp_path_factory.getbasetemp() / "marks.txt"
    path.write_text(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "PIECE", size)
        assert texts_of(path, split=mark) == [text.strip() for text in content.split(mark) if text.strip()]


def test_prompts_and_completions_between_marks(written):
    path = written("data.txt", "a\n||b<|endoftext|>c||d")
    assert fields_of(path, split="<|endoftext|>", separator="||") == [
        {"prompt": "a\n", "completion": "b"}, {"prompt": "c", "completion": "d"}]


def test_a_text_may_be_a_paragraph_or_the_file(written):
    path = written("data.txt", "\n\none\r\n two \n\n  \nthree\n")
    assert texts_of(path, split="blank") == ["one\n two", "three"]
    assert places_of(path, split="blank") == ["3", "7"]
    assert texts_of(path, split="none") == ["one\n two \n\n  \nthree"] == read_texts(path, split="none")
    assert places_of(path, split="line") == ["3", "4", "7"]


def test_a_separator_divides_prompt_and_completion(written):
    path = written("data.txt", "a || b||c||d\n\n||e\nf||\n")
    assert fields_of(path, separator="||") == [
        {"prompt": "a ", "completion": " b||c||d"}, {"prompt": "", "completion": "e"},
        {"prompt": "f", "completion": ""}]
    path = written("paragraphs.txt", "a\nb\n=>\nc\n\nd=>e")
    assert fields_of(path, separator="=>", split="blank") == [
        {"prompt": "a\nb\n", "completion": "\nc"}, {"prompt": "d", "completion": "e"}]
    assert refusal(written("data.txt", "a||b\nc|d\n"), separator="||") == (
        "2: the text has no '||'; expected prompt||completion")


@given(st.lists(st.sampled_from(["a", "bc ", " ", "\n", "\r\n", "\r", "\u2603", "\t\u3000", "\U0001f600"])),
       st.integers(1, 5))
@ANY_FILE
def test_a_stream_comes_in_pieces_that_end_where_a_word_does(tmp_path_factory, parts, size):
    content = "".join(parts)
    path = tmp_path_factory.getbasetemp() / "stream.txt"
    path.write_bytes(content.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "PIECE", size)
        records = list(read_records(path, split="none"))
        pieces = [list(record.fields["text"]) for record in read_records(path, split="none")]
    assert len(records) == len(pieces) == (1 if content.strip() else 0)
    for record, (first, *others) in zip(records, pieces, strict=True):
        assert record.where.endswith("stream.txt:1")
        assert "".join([first, *others]) == content.replace("\r\n", "\n").replace("\r", "\n").strip()
        for before, after in itertools.pairwise([first, *others]):
            if after and not after[0].isspace():
                assert len(before) >= size and not re.search(r"\S\s", before), "one long word"
            elif after:
                assert not before[-1].isspace()


def test_tokens_do_not_reach_across_the_pieces_of_a_stream(written, monkeypatch):
    """So the pieces of a text have the same ids as the whole text."""
    from npgpt import Tokenizer
    tokenizer = Tokenizer.from_pretrained("tiny")
    words = ["don't", "a", "  two", "3.14", "\n", "\n\n def", "naïve", "?!", "\t", "word's", "\u3000"]
    text = " ".join(random.Random(0).choices(words, k=4000)).strip()
    monkeypatch.setattr(text_files, "PIECE", 50)
    [record] = read_records(written("data.txt", text), split="none")
    pieces = list(record.fields["text"])
    assert len(pieces) > 100
    assert [i for piece in pieces for i in tokenizer.encode(piece)] == tokenizer.encode(text).tolist()


# JSON


def test_a_jsonl_file_holds_an_object_a_line(written):
    lines = ['{"text": "one\\ntwo "}', '  {"id": 3, "text": "na\\u00efve \\ud83d\\ude00"}\r', "",
             '{"text": "  "}', '{"text": "\u2028end"}']
    fields = [{"text": "one\ntwo "}, {"id": 3, "text": "na\u00efve \U0001f600"}, {"text": "  "}, {"text": "\u2028end"}]
    assert fields_of(written("data.jsonl", "\n".join(lines))) == fields
    path = written("bom.JSONL", "\ufeff" + "\n".join(lines))
    assert fields_of(str(path)) == fields
    assert places_of(path) == ["1", "2", "4", "5"]
    assert read_texts(path) == ["one\ntwo ", "na\u00efve \U0001f600", "\u2028end"]


@pytest.mark.parametrize("name", ["data.ndjson", "data.jsonlines"])
def test_other_endings_of_jsonl(written, name):
    assert fields_of(written(name, '{"text": "one"}\n{"text": "two"}\n')) == [{"text": "one"}, {"text": "two"}]


@pytest.mark.parametrize("content, places", [
    ('[{"a": 1},\n\n {"a": [2, "x\\n"]}\n,{}]\n', ["1", "3", "4"]),
    ('\ufeff [ {\n"a": 1},{"a": [2, "x\\n"]} , {} ] ', ["1", "2", "2"]),
    ('{"a": 1}\n{"a": [2, "x\\n"]}\n\n{}', ["1", "2", "4"]),
    ('{"a": 1}{"a": [2,\n\n "x\\n"]}\r\n\r\n{}', ["1", "1", "5"]),
])
@pytest.mark.parametrize("piece", [1, 2, 7, 1 << 20])
def test_a_json_file_holds_an_array_or_objects(written, monkeypatch, content, places, piece):
    monkeypatch.setattr(text_files, "PIECE", piece)
    path = written("data.json", content)
    assert fields_of(path) == [{"a": 1}, {"a": [2, "x\n"]}, {}]
    assert places_of(path) == places
    assert fields_of(written("empty.json", "[\n]")) == fields_of(written("blank.json", "\n ")) == []


@given(st.lists(st.dictionaries(st.text(max_size=3), st.text() | st.lists(st.integers())), max_size=5), st.booleans(),
       st.integers(1, 40))
@example([{"\x80": "\U00010000\U00010000"}, {"\U00010000": ""}], False, 1)  # pieces without a whole character
@ANY_FILE
def test_any_json_is_read_as_a_whole_or_in_pieces(tmp_path_factory, records, ascii_only, piece):
    path = tmp_path_factory.getbasetemp() / "any.json"
    for array in (True, False):
        dumped = [json.dumps(record, ensure_ascii=ascii_only, indent=array or None) for record in records]
        path.write_text(f"[{','.join(dumped)}]" if array else "\n".join(dumped), encoding="utf-8")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(text_files, "PIECE", piece)
            assert fields_of(path) == records


@pytest.mark.parametrize("value, reason", [
    ("one", "not valid JSON"), ('{"text": "one"', "not valid JSON"), ("9" * 5000, "not valid JSON"),
    ('{"text": "\tone"}', "not valid JSON: Invalid control character"),
    ("[" * 100_000, "nested too deeply"),
    ('["text"]', "not an object but an array"), ('"text"', "not an object but a string"),
    ("null", "not an object but null"), ("1.5", "not an object but a number"),
    ("false", "not an object but a truth value"),
])
@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_wrong_json_is_named_by_its_line(written, name, value, reason):
    path = written(name, '{"text": "one"}\n\n' + value + '\n{"text": "two"}\n')
    where, message = refusal(path).split(": ", 1)
    assert message.startswith(reason)
    assert message.endswith('expected an object, such as {"text": "..."}')
    assert where == ("4" if name == "data.json" and value == '{"text": "one"' else "3")


@pytest.mark.parametrize("content, message", [
    ('[{"a": 1}\n{"a": 2}]', "2: not valid JSON: expected a comma or the end of the array"),
    ('[{"a": 1}\n', "2: not valid JSON: the array has no end"),
    ('[{"a": 1},\n', "2: not valid JSON: Expecting value"),
    ('[{"a": 1}]\n\n[]', "3: not valid JSON: something follows the array"),
    ('[{"a": 1},\n]', "2: not valid JSON: Expecting value; expected an object"),
    ('[\n{"a": 1},\n{"b"}]', "3: not valid JSON: Expecting ':' delimiter; expected an object"),
    ('{"a": 1}\n\n{"b": [\n1,\n,2]}', "5: not valid JSON: Expecting value; expected an object"),
])
def test_wrong_json_arrays(written, content, message):
    assert refusal(written("data.json", content)).startswith(message)


# CSV


def test_a_csv_file_names_its_columns(written):
    path = written("data.csv", '\ufeffprompt, completion ,n\r\n"a, ""b""","c\r\nd",1\r\n\r\ne,,\r\n')
    assert fields_of(path) == [{"prompt": 'a, "b"', "completion": "c\r\nd", "n": "1"},
                               {"prompt": "e", "completion": "", "n": ""}]
    assert places_of(path) == ["2", "5"]
    assert fields_of(written("index.csv", ",text,label\n0,a,b\n1,c,d\n")) == [
        {"text": "a", "label": "b"}, {"text": "c", "label": "d"}], "as pandas writes a table"
    assert fields_of(written("comma.csv", "text,label,\na,b,\n")) == [{"text": "a", "label": "b"}]
    assert fields_of(written("both.csv", ",a,\n1,2,3\n")) == [{"a": "2"}]
    long = "x" * 200_000
    assert texts_of(written("long.csv", f"text\n{long}\n")) == [long]


@pytest.mark.parametrize("content, message", [
    ("a,b\n1,2\n3\n", "3: 1 columns, but the first row names 2: a, b"),
    ("a,b\n1,2,3\n", "2: 3 columns, but the first row names 2: a, b"),
    ("a,a\n1,2\n", "1: expected a first row that gives each column a different name, not a,a"),
    ("a,,b\n1,2,3\n", "1: expected a first row that gives each column a different name, not a,,b"),
    (",,a\n1,2,3\n", "1: expected a first row that gives each column a different name, not ,,a"),
    (",a,b\n1,2\n", "2: 2 columns, but the first row names 3"),
    ("text;label\na, b;c\n", "1: one column, 'text;label'; columns are separated by commas in a .csv file, not by ';'"),
    ("text\tlabel\n", "1: one column, 'text\\tlabel'; columns are separated by commas in a .csv file, not by '\\t': "
                       "let the file's name end in .tsv"),
    ('a\n1\n"b\n\n', "3: not valid CSV: unexpected end of data"),
    ('a\n"b"c\n', "2: not valid CSV: ',' expected after '\"'"),
])
def test_wrong_csv(written, content, message):
    assert refusal(written("data.csv", content)).startswith(message)


def test_the_name_of_a_single_column_may_hold_a_comma(written):
    assert fields_of(written("data.csv", '"a, b"\nc\n')) == [{"a, b": "c"}]


def test_tsv_is_csv_with_tabs(written):
    path = written("data.tsv", '\ttext\tlabel\n0\ta, b\t"c\td"\n')
    assert fields_of(path) == [{"text": "a, b", "label": "c\td"}]
    assert refusal(written("data.tsv", "text,label\na,b\n")) == (
        "1: one column, 'text,label'; columns are separated by tabs in a .tsv file, not by ',': let the file's name "
        "end in .csv")


# Folders


def test_a_folder_stands_for_the_data_files_in_it(written, tmp_path):
    written("a/2.txt", "three\n\nfour\n")
    written("a/1.TXT", "one\ntwo\n")
    written("a/b/3.jsonl", '{"text": "five"}')
    written("a/picture.png", b"\x89PNG\xff")
    assert texts_of(tmp_path / "a") == ["one\ntwo", "three\n\nfour", "five"]  # a file is a text
    assert texts_of(tmp_path / "a", split="line") == ["one", "two", "three", "four", "five"]
    assert [record.where for record in read_records(tmp_path / "a")][2] == f"{tmp_path}/a/b/3.jsonl:1"
    written("c/picture.png", b"\x89PNG\xff")
    with pytest.raises(FileError, match=r"c is a folder without data: expected files that end in \.txt, \.jsonl"):
        texts_of(tmp_path / "c")
    assert is_text(tmp_path / "a")
    assert is_text("missing") and is_text("data.txt")
    assert not is_text("data.csv")


# What is refused


@pytest.mark.parametrize("name", ["data.txt", "data.jsonl", "data.json", "data.csv"])
def test_bytes_that_are_not_utf8_are_named(written, name):
    content = b'\xef\xbb\xbf{"one": 1}\n{"two": 2}\n{"thr\xe9e": 3}\nfour\n'
    assert refusal(written(name, content)).startswith("3: not UTF-8 text: invalid continuation byte")
    assert refusal(written(name, b"\xff" + b'{"one": 1}\n')).startswith("1: not UTF-8 text")
    assert refusal(written(name, '{"one": 1}\n{"two": 2}\n'.encode("utf-16")[:-1])) == (
        "2: not UTF-16-LE text: truncated data; save it as UTF-8")
    if name == "data.txt":
        for split in readers.SPLITS:
            assert refusal(written(name, content), split=split).startswith("3: not UTF-8 text")


@pytest.mark.parametrize("split", readers.SPLITS)
def test_a_binary_file_is_named(written, split):
    assert refusal(written("data.txt", b"one\n\ntw\0o\n"), split=split) == (
        "3: a zero byte: this is a binary file, not text")


def test_records_too_long_to_hold_are_named(written, monkeypatch):
    monkeypatch.setattr(text_files, "LONGEST", 100)
    monkeypatch.setattr(text_files, "PIECE", 30)
    long = "x" * 101
    assert texts_of(written("data.txt", "one\n" + long[2:] + "\n")) == ["one", long[2:]]
    for name in ("data.txt", "data.jsonl", "data.csv"):
        assert "2: a line of more than " in refusal(written(name, "one\n" + long + "\n" if name != "data.jsonl" else
                                                            "{}\n" + long))
    path = written("data.txt", "one\n\n" + "two\n" * 26)
    assert refusal(path, split="blank").startswith("3: a paragraph of more than ")
    assert texts_of(path, split="none") == [path.read_text().strip()]
    assert texts_of(written("data.txt", "x" * 99 + "==" + "y" * 99), split="==") == ["x" * 99, "y" * 99]
    assert refusal(written("data.txt", "x\n==\n" + long * 2), split="==").startswith("2: a text of more than ")
    assert texts_of(written("data.txt", long), split="none") == [long]
    assert "2: not valid JSON" in refusal(written("data.json", '[\n{"a": "' + "x" * 400 + '"}]'))


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    for name in ("missing.txt", "missing.json", "missing.jsonl", "missing.csv"):
        with pytest.raises(FileError, match=r"cannot read .*missing\..*: No such file"):
            fields_of(tmp_path / name)
    with pytest.raises(FileError, match="cannot read '': expected the name"):  # Path("") is the folder one is in
        fields_of("")


def test_options_that_cannot_be_used(written):
    path = written("data.txt", "one\n")
    with pytest.raises(ConfigError, match="split = 'word': it must be one of line, blank, none"):
        fields_of(path, split="word")
    with pytest.raises(ConfigError, match="separator = ''"):
        fields_of(path, separator="")
    with pytest.raises(ConfigError, match=r"separator = '=': .* cannot be empty or be used with split none"):
        fields_of(path, separator="=", split="none")


@pytest.mark.parametrize("name", ["data.txt", "data.jsonl", "data.json", "data.csv"])
@pytest.mark.parametrize("content", [b"", b"\n \r\n\t\n", b"\xef\xbb\xbf"])
def test_a_file_without_text_is_an_error(written, name, content):
    with pytest.raises(FormatError, match="holds no text"):
        read_texts(written(name, content))


@given(st.binary() | st.text().map(str.encode) | st.lists(st.sampled_from(
    [b"{", b"}", b"[", b"]", b'"', b"text", b":", b",", b"\n", b"\\", b" ", b"\r", b"1", b"||"])).map(b"".join),
    st.sampled_from(["any.txt", "any.jsonl", "any.json", "any.csv"]), st.sampled_from([*readers.SPLITS, "||"]))
@ANY_FILE
@pytest.mark.filterwarnings("ignore:.*the first lines are JSON objects")
def test_any_file_is_read_or_refused_in_one_line(tmp_path_factory, content, name, split):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    try:
        texts = read_texts(path, split)
    except FormatError as error:
        assert str(error).isprintable()
    else:
        assert texts and all(text.strip() for text in texts)
