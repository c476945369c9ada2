"""Data sets from the hub, really through huggingface_hub, in processes of their own with an empty cache."""

import subprocess
import sys

import pytest

from npgpt.data import is_text, located, read_records, sources, splits
from npgpt.runtime.errors import ConfigError, FileError, HubError
from tests.commands.conftest import environment_with
from tests.hub.process import Process
from tests.hub.server import Hub

FILES = {"README.md": b"---\nlicense: mit\n---\n# Texts\n", "data/train-00000-of-00001.jsonl": b'{"text": "one"}\n',
         "data/validation-00000-of-00001.jsonl": b'{"text": "two"}\n', "picture.png": b"\x89PNG",
         "more/a.csv": b"text\nthree\n"}
NAME = "someone/texts"
URL = f"hf://datasets/{NAME}"


@pytest.fixture(scope="module")
def hub():
    with Hub() as hub:
        repository = hub.add(f"datasets/{NAME}", FILES)
        repository.commit({"train.txt": b"old\n"}, "old")
        hub.add("datasets/someone/several", {
            "README.md": b"---\nconfigs:\n- config_name: a\n  data_files: a/*.csv\n- config_name: b\n---\n",
            "a/train.csv": b"text\none\n", "b/train.csv": b"text\ntwo\n"})
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def process(hub, home):
    with Process(home, hub.url) as process:
        yield process


def texts(url):
    return f"[r.fields['text'] for r in __import__('npgpt.data').data.read_records({url!r})]"


def test_a_data_set_is_downloaded_once_and_then_needs_no_hub(hub, process, home):
    found = process("{name: [f.as_posix() for f in files] for name, files in __import__('npgpt.data').data.splits("
                    f"{URL!r}).items()}}")
    assert {name: [file.partition("/data/")[2] for file in files] for name, files in found.items()} == {
        "train": ["train-00000-of-00001.jsonl"], "validation": ["validation-00000-of-00001.jsonl"], "other": [""]}
    requests = [line for line in hub.take() if line.startswith("GET /datasets")]
    assert len(requests) == 4 and not any("picture" in line for line in requests)
    for more in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        with Process(home, more.pop("HF_ENDPOINT", hub.url), **more) as offline:
            assert offline(texts(f"{URL}/data/train-00000-of-00001.jsonl")) == ["one"]
    assert hub.take() == []


def test_finetune_trains_and_measures_on_its_splits(hub, tmp_path):
    environment = environment_with(tmp_path / "home", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0")
    command = [sys.executable, "-m", "npgpt", "finetune", "--model", "tiny", "--data", URL, "--preview", "0"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    trained = f"files      {URL}: data/train-00000-of-00001.jsonl trained on; "
    assert lines[0].startswith(f"{trained}data/validation-00000-of")
    assert [line.partition(": ")[2][:6] for line in lines if line[:8] in ("data    ", "held out")] == ["1 text"] * 2


def test_a_part_and_a_revision_can_be_named(process):
    assert process(texts(f"{URL}/more")) == ["three"]
    assert process(texts(f"{URL}/more/a.csv/")) == ["three"]
    assert process(texts(f"{URL}@old")) == ["old"]


def test_what_is_not_there_is_named(process, hub, tmp_path):
    with pytest.raises(FileError, match=r"the data set 'someone/texts' has no none that npgpt can read; a file "):
        process(texts(f"{URL}/none"))
    with pytest.raises(HubError, match=r"there is no data set 'someone/none' on http"):
        process(texts("hf://datasets/someone/none"))
    with pytest.raises(HubError, match=r"'someone/texts' has no revision 'none'"):
        process(texts(f"{URL}@none"))
    with pytest.raises(FileError, match=r"holds files of the splits train, validation: name one of the files"):
        process(texts(URL))
    with Process(tmp_path, hub.url, HF_HUB_OFFLINE="1") as offline, pytest.raises(
            HubError, match=r"the data set 'someone/texts' is not in the cache .* cannot be reached; name a file"):
        offline(texts(URL))


def test_several_data_sets_in_one_are_not_mixed(process):
    with pytest.raises(FileError, match=r"holds several data sets, a, b, as its README.md says: name a folder"):
        process(texts("hf://datasets/someone/several"))
    assert process(texts("hf://datasets/someone/several/b")) == ["two"]


@pytest.mark.parametrize("url", ["hf://", "hf://texts", "hf://datasets/texts", "hf://models/a/b", "hf://datasets/a/b@/c"])
def test_other_addresses_are_refused(url):
    for read in (lambda: next(read_records(url)), lambda: splits(url), lambda: is_text(url), lambda: located(url)):
        with pytest.raises(ConfigError, match=r"expected hf://datasets/OWNER/NAME, or with @REVISION"):
            read()


@pytest.mark.parametrize("readme, names", [
    ("", []), ("# Text\n", []), ("---\nlicense: mit\n---\n", []), ("---\nconfigs:\n- config_name: a\n---\n", ["a"]),
    ("---\nconfigs:\n- data_files: x\n  config_name: a\n- config_name: b\ndataset_info:\n- config_name: b\n---\n",
     ["a", "b"]),
    ("---\nno end\n- config_name: a\n- config_name: b\n", []),
])
def test_the_names_of_data_sets_in_a_folder(tmp_path, readme, names):
    (tmp_path / "README.md").write_text(readme)
    assert sources._data_sets(tmp_path) == names
    assert sources._data_sets(tmp_path / "none") == []
