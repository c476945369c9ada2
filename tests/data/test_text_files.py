"""Files as text: encodings, line ends, and pipes, which can be read only once."""

import codecs
import gc
import itertools
import json
import os
import tempfile
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from npgpt.data import Documents, is_text, read_records, read_texts, readable_again, text_files
from npgpt.runtime.errors import FileError, FormatError

LINES = "".join(f"text number {i}\n" for i in range(2000))
RECORDS = [{"text": f"text number {i}"} for i in range(2000)]


@pytest.fixture
def pipe(tmp_path):
    """pipe(content, name): the path of a pipe that gives these bytes, once."""
    names = itertools.count()

    def make(content, name=None):
        path = tmp_path / (name or f"pipe{next(names)}")
        os.mkfifo(path)
        threading.Thread(target=path.write_bytes, args=[content], daemon=True).start()
        return path

    return make


def test_all_of_a_pipe_is_read(pipe):
    expected = LINES.splitlines()
    assert read_texts(pipe(LINES.encode())) == expected
    assert [record.fields["text"] for record in read_records(pipe(LINES.encode()))] == expected
    documents = Documents(pipe(LINES.encode()))
    for _ in range(2):
        assert ["".join(text for text, _ in document.segments[:1]) for document in documents] == expected
    assert read_texts(pipe(LINES.encode()), split="none") == [LINES.strip()]
    assert read_texts([pipe(b"one"), pipe(b"two")]) == ["one", "two"]


def test_errors_in_a_pipe_name_it(pipe):
    path = pipe(b"one\ntw\xff\n")
    with pytest.raises(FormatError, match=f"{path}:2: not UTF-8 text"):
        read_texts(path)


@pytest.mark.parametrize("content", [
    "\n".join(map(json.dumps, RECORDS)), json.dumps(RECORDS), "\n " + json.dumps(RECORDS, indent=1)])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_a_pipe_gives_is_recognised(pipe, content, encoding):
    again = readable_again(pipe(content.encode(encoding)))
    assert not is_text(again)
    assert [record.fields for record in read_records(again)] == RECORDS


@pytest.mark.parametrize("content", ["", "{a} [", "[ 1", "text"])
def test_what_is_not_json_in_a_pipe_is_text(pipe, content):
    again = readable_again(pipe(content.encode()))
    assert is_text(again)
    assert [record.fields["text"] for record in read_records(again)] == [content] * bool(content)


def test_the_ending_of_a_pipe_counts(pipe):
    assert [record.fields for record in read_records(pipe(b"a,b\n1,2\n", "x.csv"))] == [{"a": "1", "b": "2"}]
    with pytest.warns(UserWarning, match="are JSON objects, but are read as plain text"):
        assert read_texts(pipe(b'{"text": "x"}', "x.txt")) == ['{"text": "x"}']
    assert is_text(pipe(b"x")) and not is_text(pipe(b"x", "y.csv")), "and nothing was read"


def test_regular_files_are_not_copied(written, tmp_path):
    path = written("data.txt", "one\n")
    assert readable_again(path) is path
    assert readable_again(str(path)) == str(path)
    assert readable_again([path, "missing"]) == [path, "missing"]
    assert readable_again(tmp_path) is tmp_path
    again = readable_again(os.devnull)
    assert readable_again(again) is again and list(read_records(again)) == []


def test_devices_without_an_end_are_refused():
    with pytest.raises(FileError, match="/dev/zero is a device; expected a file, a folder or a pipe"):
        read_texts("/dev/zero")


def test_a_copy_is_a_file_that_disappears(pipe, monkeypatch):
    made, original = [], tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: made.append(original()) or made[-1])
    documents = Documents(pipe(LINES.encode()))
    assert not made[0].closed and os.fstat(made[0].fileno()).st_nlink == 0
    del documents
    gc.collect()
    assert len(made) == 1


def test_a_full_folder_for_temporary_files_is_named(pipe, monkeypatch):
    class Full:
        def write(self, _):
            raise OSError(28, "No space left on device")
        close = flush = lambda self: None

    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    path = pipe(b"text")
    with pytest.raises(FileError, match=rf"cannot copy {path} into a temporary file: No space left on device; set "):
        readable_again(path)


def test_a_view_is_a_file(pipe):
    again = readable_again(pipe(b"0123456789"))
    one, two = again.open(), again.open()
    assert (one.read(3), two.read(2), one.read(), one.read()) == (b"012", b"01", b"3456789", b"")
    assert (one.seek(-2, os.SEEK_END), one.read(), two.tell(), two.seek(1, os.SEEK_CUR), two.read(1)) == (
        8, b"89", 2, 3, b"3")


# Encodings and line ends

MARKED = {"utf-8": codecs.BOM_UTF8, "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE,
          "utf-32-le": codecs.BOM_UTF32_LE, "utf-32-be": codecs.BOM_UTF32_BE}


@pytest.mark.parametrize("encoding", MARKED)
@pytest.mark.parametrize("name, content", [
    ("data.txt", "na\u00efve\n\U0001f600"), ("data.jsonl", '{"text": "na\u00efve"}\n{"text": "\U0001f600"}'),
    ("data.json", '[{"text": "na\u00efve"},\n{"text": "\U0001f600"}]'),
    ("data.csv", "text,n\nna\u00efve,1\n\U0001f600,2\n"),
    ("data.tsv", "text\tn\nna\u00efve\t1\n\U0001f600\t2\n")])
def test_a_mark_says_the_encoding(written, name, content, encoding):
    for end in "\n", "\r\n", "\r":
        path = written(name, MARKED[encoding] + content.replace("\n", end).encode(encoding))
        assert read_texts(path) == ["na\u00efve", "\U0001f600"]
    assert [record.where for record in read_records(path)] == [f"{path}:{i + 1 + (name[-3:] in ('csv', 'tsv'))}"
                                                               for i in range(2)]


@given(st.lists(st.sampled_from(["a", "\u2028", "\x0c", "\n", "\r\n", "\r", "\u2603", "\U0001f600"])),
       st.sampled_from([*MARKED]), st.integers(1, 5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lines_are_those_of_the_text_however_it_is_cut(tmp_path_factory, parts, encoding, size):
    path = tmp_path_factory.getbasetemp() / "lines.txt"
    path.write_bytes(MARKED[encoding] + "".join(parts).encode(encoding))
    with path.open(encoding=encoding, newline="") as file:
        expected = list(file)
    expected[:1] = [line.removeprefix("\ufeff") for line in expected[:1]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "PIECE", size)
        assert list(text_files.lines(path)) == list(enumerate([line for line in expected if line], start=1))
        assert "".join(text_files.decoded(path)) == "".join(expected).replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_wrong_byte_is_named_by_its_line(written, end, monkeypatch):
    path = written("data.txt", f"one{end}{end}three{end}".encode() + b"fo\xffur")
    for size in (1, 3, 100):
        monkeypatch.setattr(text_files, "PIECE", size)
        with pytest.raises(FormatError, match=f"{path}:4: not UTF-8 text: invalid start byte; save it as UTF-8"):
            list(text_files.lines(path))


@pytest.mark.parametrize("content, name", [
    (b"\xef\xbb", "UTF-8"), (b"\xff\xfea", "UTF-16-LE"), (b"\xfe\xff\xd8\0", "UTF-16-BE")])
def test_a_part_of_a_character_at_the_end(written, content, name):
    path = written("data.txt", content)
    with pytest.raises(FormatError, match=f":1: not {name} text: (unexpected end of data|truncated data)"):
        list(text_files.decoded(path))
