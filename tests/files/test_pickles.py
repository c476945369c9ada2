"""Pickles of plain values. test_torchfile.py has tensors, and hostile pickles."""

import pickle

import pytest

from npgpt.files import pickles
from npgpt.runtime.errors import FileError, FormatError
from tests.files.test_torchfile import HOSTILE, Call, Name, Persistent, pickled

PLAIN = {"a": [1, -2, 3.5, 10**12, None, True], "b": ("x", {"é": {}, 5: []}), "again": "x", "n": float("inf")}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_read(tmp_path, protocol):
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(PLAIN, protocol))
    assert pickles.read(tmp_path / "meta.pkl") == PLAIN


@pytest.mark.parametrize(("content", "message"), [
    (b"", "its pickle is damaged"),
    (pickle.dumps(PLAIN)[:-1], "its pickle is damaged"),
    (pickle.dumps(PLAIN) + b"x", "more bytes follow the end of its pickle"),
    (pickle.dumps(PLAIN, 0), "which no file of plain values needs; nothing was run"),
    (pickle.dumps({1, 2}), "its pickle uses EMPTY_SET, which no file of plain values needs"),
    (pickled(Name("builtins dict")), "its pickle names 'builtins.dict', which no file of plain values needs"),
    (pickled(Name("collections OrderedDict")), "its pickle names 'collections.OrderedDict'"),
    (pickled(Persistent(("storage",))), "refers to something outside"),
    (pickled(Call(("os.mkdir", ("x",)))), "type str where another belongs"),
])
def test_everything_else_is_refused(tmp_path, content, message):
    (tmp_path / "meta.pkl").write_bytes(content)
    with pytest.raises(FormatError, match=f"meta.pkl: .*{message}"):
        pickles.read(tmp_path / "meta.pkl")


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_does_not_run(tmp_path, kind):
    _, value = HOSTILE[kind]
    (tmp_path / "meta.pkl").write_bytes(pickled({"stoi": value(str(tmp_path / "made"))}))
    with pytest.raises(FormatError, match="nothing was run"):
        pickles.read(tmp_path / "meta.pkl")
    assert not (tmp_path / "made").exists()


def test_missing_and_large_files(tmp_path):
    with pytest.raises(FileError, match=r"cannot read .*none: No such file"):
        pickles.read(tmp_path / "none")
    (tmp_path / "large").write_bytes(b"\x80\x02" + b"\x88" * pickles.MAX_PICKLE)
    with pytest.raises(FormatError, match=f"its end is not within {pickles.MAX_PICKLE} bytes"):
        pickles.read(tmp_path / "large")
