"""gradcheck.py prints a table of what it checked; its failures are tested in tests/checking/test_gradcheck.py."""

import npgpt


def lines(stdout):
    """The arguments of the table's rows; every one passed, and they are counted by operation below and at the end."""
    table, summary = stdout.split("\n\n")
    heading, *rows = table.splitlines()
    _, *groups, last = summary.splitlines()
    assert heading.split()[:2] == ["operation", "argument"]
    assert all(row.endswith("  passed") for row in rows)
    assert sum(int(group.split()[-2]) for group in groups) == len(rows)
    assert last == f"{len(rows)} passed, 0 failed"
    return [row.split()[-5] for row in rows]


def test_every_operation(script):
    assert len(lines(script("gradcheck.py"))) > 200


def test_a_model_of_ones_own(script, model):
    assert lines(script("gradcheck.py", "--model", model)) == list(npgpt.GPT2.from_pretrained(model).parameters())


def test_an_adapter_of_ones_own(script, model, adapter):
    adapted = npgpt.load_adapter(npgpt.GPT2.from_pretrained(model), adapter)
    names = lines(script("gradcheck.py", "--model", model, "--adapter", adapter))
    assert names == list(adapted.trainable_parameters())
    assert names


def test_an_adapter_without_its_model(refused, adapter):
    assert "--adapter needs --model" in refused("gradcheck.py", "--adapter", adapter)
