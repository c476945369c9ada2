"""The file of records, with which an interrupted evaluation goes on."""

import dataclasses

import numpy as np
import pytest

import npgpt
from npgpt.evaluation.records import Records, complete, fingerprint
from npgpt.evaluation.tasks import Task
from npgpt.runtime.errors import FileError, FormatError


class Echo:
    """A task that answers with the item itself and records which items were asked."""

    items = ("x", "y", "z", "y")

    def __init__(self, stop_after=None):
        self.asked, self.stop_after = [], stop_after

    def key(self, i):
        return self.items[i]

    def results(self, _model, indices):
        for i in reversed(indices):
            if len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(i)
            yield i, {"answer": self.items[i]}


def test_records_come_in_the_order_of_the_items(tmp_path):
    answers = [{"answer": item} for item in Echo.items]
    done = []
    assert complete(Records(), "base", Echo(), None, done.append) == answers
    assert done == [1, 2, 3, 4]
    assert complete(Records(tmp_path / "new" / "out.jsonl"), "base", Echo(), None) == answers


@pytest.mark.parametrize("torn", [b"", b'{"system": "base", "it'])
def test_an_interrupted_evaluation_goes_on(tmp_path, torn):
    path = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        complete(Records(path), "base", Echo(stop_after=2), None)
    path.write_bytes(path.read_bytes() + torn)  # as if killed during a write
    task = Echo()
    assert complete(Records(path), "base", task, None) == [{"answer": item} for item in Echo.items]
    assert task.asked == [0]  # z and y were done already, and y occurs twice
    whole = path.read_bytes()
    assert whole.count(b"\n") == 3
    task = Echo()
    complete(Records(path), "base", task, None)
    assert task.asked == []
    assert path.read_bytes() == whole
    complete(Records(path), "another system", task, None)
    assert len(task.asked) == 4


class Neighbours(Task):
    """A task that answers with the whole group of an item and records which groups ran."""

    items = tuple("abcdefg")

    def __init__(self):
        self.run = []

    def key(self, i):
        return self.items[i]

    def groups(self, _model):
        return [[6, 0, 3], [1, 5], [2], [4]]

    def records(self, _model, group):
        self.run.append(group)
        return [{"answer": [self.items[i] for i in group], "of": i} for i in group]


@pytest.mark.parametrize("done", range(7))
def test_what_is_left_is_asked_in_the_groups_of_all(tmp_path, done):
    path = tmp_path / "out.jsonl"
    whole = complete(Records(path), "base", Neighbours(), None)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:done]))
    task = Neighbours()
    assert complete(Records(path), "base", task, None) == whole
    assert path.read_bytes() == b"".join(lines)
    assert task.run == task.groups(None)[[0, 0, 0, 1, 1, 2, 3][done]:]  # a complete group does not run


@pytest.mark.parametrize("line", [b"x", b"[1]", b'{"system": "a"}', b'"\xff"', b'{"system": [], "item": "b"}'])
def test_another_file_is_left_alone(tmp_path, line):
    path = tmp_path / "out.jsonl"
    content = b'{"system": "a", "item": "b"}\n' + line + b"\n"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"out\.jsonl:2: this line is not a record of an evaluation"):
        Records(path)
    assert path.read_bytes() == content


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(FileError, match="cannot write"):
        Records(tmp_path)


def test_fingerprints_differ_where_models_do(tmp_path):
    config = npgpt.GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=5, n_positions=6)
    model = npgpt.GPT2(config)
    first = fingerprint(model)
    assert first == fingerprint(npgpt.GPT2(config)) != fingerprint(npgpt.GPT2(config, seed=1))
    assert first != fingerprint(npgpt.GPT2(dataclasses.replace(config, layer_norm_epsilon=1e-4)))
    model.ln_f.bias.data[0] = np.float32(1e-6)
    assert first != fingerprint(model)
    npgpt.add_lora(model, npgpt.LoraConfig(lora_alpha=16))
    npgpt.save_adapter(model, tmp_path / "a")
    one = fingerprint(model, tmp_path / "a")
    config_file = tmp_path / "a" / "adapter_config.json"
    config_file.write_text(config_file.read_text().replace('"lora_alpha": 16', '"lora_alpha": 32'))
    assert one != fingerprint(model, tmp_path / "a")


def test_answers_go_into_a_file(tmp_path):
    for place in (tmp_path, "/dev/null"):
        with pytest.raises(FileError, match="this is not a file; name a file for the answers"):
            Records(place)
