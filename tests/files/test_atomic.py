import errno
import os

import pytest

from npgpt.files import atomic
from npgpt.runtime.errors import FileError, FormatError, HubError


def test_replacing_puts_the_new_file_in_place_and_makes_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    for text in ("first", "second"):
        with atomic.replacing(path) as temporary:
            temporary.write_text(text)
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x"), HubError("no hub")])
def test_replacing_keeps_the_old_file_when_the_block_fails(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(type(error)) as caught, atomic.replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert caught.value is error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_names_the_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "below", tmp_path):
        with pytest.raises(FileError, match=f"^cannot write {path}: "), atomic.replacing(path) as temporary:
            temporary.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_new_folder_is_put_in_place_whole(tmp_path):
    path = tmp_path / "a" / "b"
    for _ in range(2):
        with atomic.new_folder(path) as temporary:
            (temporary / "file.txt").write_text("x")
            assert not path.exists() or not any(path.iterdir())
        assert [each.relative_to(tmp_path).as_posix() for each in tmp_path.rglob("*")] == ["a", "a/b", "a/b/file.txt"]
        (path / "file.txt").unlink()  # the second time it is there, and empty


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x"), HubError("no hub")])
def test_no_new_folder_when_the_block_fails(tmp_path, error):
    with pytest.raises(type(error)) as caught, atomic.new_folder(tmp_path / "new") as temporary:
        (temporary / "file.txt").write_text("half")
        raise error
    assert caught.value is error
    assert not list(tmp_path.iterdir())


def test_a_new_folder_takes_no_place_that_is_taken(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    taken = "it exists already and is not an empty folder"
    for name, message in (("full", taken), ("file", taken), ("file/below", "cannot write .*below: Not a directory")):
        with pytest.raises(FileError, match=message), atomic.new_folder(tmp_path / name):
            pytest.fail("the block ran")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "mine.txt"]


def test_json_round_trip(tmp_path):
    value = {"b": [1, 2.5, None], "a": {"é": True}}
    atomic.write_json(tmp_path / "x.json", value)
    assert atomic.read_json(tmp_path / "x.json") == value
    atomic.write_json(tmp_path / "x.json", value, sort_keys=True)
    assert list(atomic.read_json(tmp_path / "x.json")) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"[" * 200_000, "is not valid JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is not valid JSON"),
        (b'"\xff"', "is not UTF-8 text: invalid start byte at byte 1"),
        (b"[]", "holds a JSON list, not an object"),
    ],
)
def test_read_json_says_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=f"x.json {message}") as caught:
        atomic.read_json(path)
    assert "\n" not in str(caught.value)


def test_read_json_of_a_missing_file(tmp_path):
    with pytest.raises(FileError, match=r"cannot read .*none.json: No such file or directory"):
        atomic.read_json(tmp_path / "none.json")


def test_what_others_left_stays(tmp_path):
    ours, theirs = tmp_path / ".state.123.tmp", tmp_path / ".editor.tmp"
    for path in (ours, theirs):
        path.touch()
    atomic.remove_leftovers(tmp_path)
    assert theirs.exists() and not ours.exists()


def test_a_folder_that_cannot_be_removed(tmp_path):
    with pytest.raises(FileError, match="cannot remove"):
        atomic.remove_folder(tmp_path / "missing")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.EACCES, errno.ENOTSUP, errno.ENOSYS])
@pytest.mark.parametrize("name", ["open", "fsync"])
def test_a_file_system_that_cannot_flush_is_written_all_the_same(tmp_path, monkeypatch, name, number):
    """CIFS says EINVAL for a folder. Windows does not even open one (EACCES)."""
    def failing(*_):
        raise OSError(number, os.strerror(number))

    with atomic.new_folder(tmp_path / "new") as temporary:
        (temporary / "file.txt").write_text("x")
        monkeypatch.setattr(os, name, failing)
    assert (tmp_path / "new" / "file.txt").read_text() == "x"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_flush_that_finds_no_room_is_an_error(tmp_path, monkeypatch, number):
    def failing(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    with (pytest.raises(FileError, match=f"cannot write .*new: {os.strerror(number)}"),
          atomic.new_folder(tmp_path / "new") as temporary):
        (temporary / "file.txt").write_text("x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_mark_says_how_a_file_is_encoded(tmp_path, encoding):
    (tmp_path / "file.json").write_text('{"na\u00efve": "\U0001f600"}', encoding=encoding)
    assert atomic.read_json(tmp_path / "file.json") == {"na\u00efve": "\U0001f600"}
    assert atomic.read_text(tmp_path / "file.json") == '{"na\u00efve": "\U0001f600"}'
