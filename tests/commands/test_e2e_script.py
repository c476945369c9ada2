"""e2e.py compares ways to train on meanings and words: its figures are the library's, its search finds a valley."""

import json
import math

import e2e
import numpy as np
import pytest

import npgpt
from npgpt import data
from npgpt.adapters.stack import updates as updates_of
from npgpt.evaluation import coco, mteval

PLACES = ["Aromi", "Cocum", "Zizzi", "Strada", "Wildwood", "Giraffe", "Fitzbillies", "Browns", "Clowns", "Cotto"]
TRAIN = "".join(f"{name} | {kind}||{name} is a {kind} {end}\n"
                for name in PLACES for kind in ("pub", "cafe") for end in (".", "by the river ."))
TEST = "Alimentum | pub||Alimentum is a pub .\nAlimentum | pub||The pub Alimentum .\nZizzi | cafe||Zizzi is a cafe .\n"
CONFIG = npgpt.GPT2Config(vocab_size=31, n_positions=16, n_embd=16, n_layer=3, n_head=2)


@pytest.fixture(autouse=True)
def files(tmp_path):
    (tmp_path / "train.txt").write_text(TRAIN)
    (tmp_path / "test.txt").write_text(TEST)


def test_the_whole(script, model, tmp_path):
    stdout = script("e2e.py", "--model", model, "--train", "train.txt", "--test", "test.txt", "--out", "all.json",
                    "--epochs", "2", "--short-steps", "2", "--start", "5e-3", "--methods", "lora", "all-weights")
    rows = json.loads((tmp_path / "all.json").read_text())["methods"]
    assert "train.txt: 40 texts; test.txt: 3 texts, 2 meanings" in stdout
    assert list(rows) == ["lora", "all-weights"]
    base = npgpt.GPT2.from_pretrained(model)
    assert rows["lora"]["trainable"] == 2 * 4 * (16 + 48)
    assert rows["all-weights"]["trainable"] == sum(tensor.data.size for tensor in base.parameters().values())
    references = [["Alimentum is a pub .", "The pub Alimentum ."], ["Zizzi is a cafe ."]]
    before = base_loss(base, model, tmp_path)
    for method, row in rows.items():
        outputs = [answer["output"] for answer in row["answers"]]
        assert [answer["references"] for answer in row["answers"]] == references
        assert list(row["scores"]) == ["BLEU", "NIST", "ROUGE-L", "CIDEr"]
        assert row["scores"]["BLEU"][0] == mteval.bleu(outputs, references)
        assert row["scores"]["CIDEr"][0] == coco.cider(outputs, references)
        assert row["loss"] < before - 0.1
        assert row["tried"][str(row["rate"])] == min(row["tried"].values())
        line = next(line for line in stdout.splitlines() if line.startswith(method + " "))
        assert line.split()[1:5] == [f"{row['trainable']:,}", f"{row['rate']:g}", f"{row['loss']:.3f}",
                                     f"{row['scores']['BLEU'][0]:.2f}"]


def base_loss(base, folder, tmp_path):
    documents = data.Documents(tmp_path / "test.txt", separator="||")
    encoded, _ = data.encode(npgpt.Tokenizer.from_pretrained(folder), documents, 64)
    return e2e.loss(base, encoded.sequences)


@pytest.mark.parametrize("method, names", [
    ("lora", {f"h.{i}.attn.c_attn.lora_{m}" for i in range(3) for m in "AB"}),
    ("last-block", {name for name in npgpt.GPT2(CONFIG).parameters() if name.startswith(("h.2.", "ln_f."))}),
    ("all-weights", set(npgpt.GPT2(CONFIG).parameters())),
])
def test_what_each_method_trains(method, names):
    model = npgpt.GPT2(CONFIG)
    e2e.METHODS[method](model, 0)
    assert set(model.trainable_parameters()) == names
    assert model.config.resid_pdrop == (0 if method == "lora" else e2e.DROPOUT)


def test_the_papers_lora():
    """Rank 4 and alpha 32, on every linear layer in the larger form."""
    for method, layers in (("lora", 1), ("lora-all-linear", 4)):
        model = npgpt.GPT2(CONFIG)
        e2e.METHODS[method](model, 0)
        updates = updates_of(model)
        assert len(updates) == 3 * layers
        assert {update.scale for update in updates.values()} == {32 / 4}
    shapes = {tensor.shape for name, tensor in model.trainable_parameters().items() if name.endswith("lora_A")}
    assert shapes == {(4, 16), (4, 64)}


@pytest.mark.parametrize("valley", [0, 1, 5, 9, len(e2e.RATES) - 1])
@pytest.mark.parametrize("start", [0, 5, len(e2e.RATES) - 1])
def test_the_search_walks_down_to_the_lowest(valley, start):
    seen = []

    def loss_at(rate):
        seen.append(rate)
        place = e2e.RATES.index(rate)
        return math.inf if place > valley + 1 and place != start else abs(place - valley)

    rate, tried = e2e.look_for_rate(loss_at, min(start, valley + 1))
    assert rate == e2e.RATES[valley]
    assert len(seen) == len(set(seen)) == len(tried)
    for neighbour in (valley - 1, valley + 1):
        if 0 <= neighbour < len(e2e.RATES):
            assert e2e.RATES[neighbour] in tried


def test_where_all_rates_diverge_the_search_ends():
    rate, tried = e2e.look_for_rate(lambda _: math.inf, 4)
    assert rate == e2e.RATES[4]
    assert len(tried) == 3


def test_rates_are_1_2_5():
    assert np.allclose(e2e.RATES[3:7], [1e-5, 2e-5, 5e-5, 1e-4], rtol=1e-12)


@pytest.mark.parametrize("flags, message", [
    (["--train", "none.txt"], "cannot read none.txt"),
    (["--test", "plain.txt"], "plain.txt:1: the text has no '||'"),
    (["--start", "3"], "argument --start: invalid choice"),
    (["--methods", "lora", "magic"], "argument --methods: invalid choice: 'magic'"),
    (["--epochs", "0"], "--epochs 0: it must be at least 1"),
    (["--short-steps", "0"], "--short-steps 0: it must be at least 1"),
    (["--limit", "-1"], "--limit -1: it must be at least 1"),
])
def test_what_is_refused(refused, model, tmp_path, flags, message):
    (tmp_path / "plain.txt").write_text("no separator here\n")
    assert message in refused("e2e.py", "--model", model, "--train", "train.txt", "--test", "test.txt", *flags)
