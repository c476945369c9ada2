"""scripts/corpus.py, scripts/pretrain.py, and the embedded model they made."""

import json
from pathlib import Path

import corpus
import numpy as np
import pretrain
import pytest

import npgpt
from npgpt.files import safetensors
from npgpt.files.hub import TINY
from npgpt.files.tokenizer import END_OF_TEXT, Tokenizer

DOCSTRING = '''\
frobnicate(a, b=None) -> array

the elements of `a`, frobnicated with :func:`~numpy.frob`, as an
array of *at most* ``b`` items [1]_.

.. versionadded:: 1.2
    Nobody needs to know this about the function.

.. note::
    This function \u201cnever\u201d looks back.

Parameters
----------
a : array_like, shape (N,), of whatever may be frobnicated here
    The input, which may be empty.
b : int, optional
    At most so many
    items are returned.

See Also
--------
Defrobnicate : The inverse of this function, for those who need it.

Notes
-----
The result is the sum of all things. It is computed like this::

    y = frob(a) + frob(b) for all of the things that there are.

Two cases are told apart:

* the input is a list of numbers, which are
  taken one by one,
* anything else.

Examples
--------
Frobnicate a list of five numbers:

>>> frobnicate([1, 2, 3, 4, 5])
    This is the output that was printed.
'''

PROSE = '''\
The elements of a, frobnicated with numpy.frob, as an array of at most b items.
This function "never" looks back.
The input, which may be empty.
At most so many items are returned.
The result is the sum of all things.
Two cases are told apart:
The input is a list of numbers, which are taken one by one.'''


def test_a_docstring_is_cleaned_down_to_its_prose():
    assert corpus.clean(DOCSTRING, set()) == PROSE


def test_a_paragraph_is_kept_once():
    seen = set()
    assert corpus.clean("Return the number of items.", seen) == "Return the number of items."
    assert corpus.clean("Return the *number* of items\n\nIt counts all of them.", seen) == "It counts all of them."


@pytest.mark.parametrize("text", [
    "See https://example.org for the rest of it.", "Return x -> y for all of them.", "Three words only.",
    "a_b(c) = d_e[0] + f_g, h2 % 7.", "Na\u00efve text is left out here.", "and this starts in the middle",
])
def test_what_is_not_a_plain_sentence_is_dropped(text):
    assert corpus.prose(text, first=False, is_item=False) == ""


def test_the_sources_are_read_in_a_fixed_order():
    folder = Path(json.__file__).parent
    found = list(corpus.source_docstrings(folder))
    assert found == list(corpus.source_docstrings(folder))
    assert json.__doc__.strip() in found
    assert json.JSONDecoder.__doc__.strip().split("\n")[0] in "\n".join(filter(None, found))


def test_functions_written_in_c_are_asked():
    assert np.ndarray.sort.__doc__ in list(corpus.live_docstrings("numpy"))


def test_pack_cuts_nothing_and_fills_up_to_the_length():
    pieces = [np.full(n, n) for n in (3, 4, 5, 9, 1, 10, 2)]
    blocks = [block.tolist() for block in pretrain.pack(pieces, 10)]
    assert blocks == [[3] * 3 + [4] * 4, [5] * 5, [9] * 9 + [1], [10] * 10, [2] * 2]


def test_each_pass_holds_every_piece_once_in_its_own_order():
    pieces = [np.full(2, i) for i in range(20)]
    stream = pretrain.epochs(pieces, length=6, tokens=12, seed=0)
    passes = [np.concatenate([next(stream).ids for _ in range(4)]) for _ in range(2)]
    for ids in passes:
        assert sorted(ids.tolist()) == sorted(2 * list(range(20)))
    assert passes[0].tolist() != passes[1].tolist()
    again = pretrain.epochs(pieces, length=6, tokens=12, seed=0)
    assert next(again).ids.tolist() == passes[0][:12].tolist()


def test_the_tokenizer_takes_any_text_and_ends_it_with_its_last_id():
    tokenizer = Tokenizer(pretrain.train_tokenizer(["the cat sat on the mat " * 50], vocab_size=270))
    text = "the dog, na\u00efve \U0001f600\n\x00"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("the")) == 1
    assert tokenizer.eos_id == tokenizer.vocab_size - 1 == int(tokenizer.encode(END_OF_TEXT)[0])


SMALL = "--steps 6 --warmup 2 --batch-tokens 64 --vocab-size 300 --n-positions 32 --n-embd 8 --n-layer 1 --n-head 2"


@pytest.fixture
def texts(monkeypatch):
    texts = [f"The function number {i} returns {i + 1}, and then it stops." for i in range(120)]
    monkeypatch.setattr(corpus, "documents", lambda: texts)
    return texts


def test_a_run_writes_a_model_that_loads(texts, tmp_path, capsys):
    pretrain.run(*pretrain.parse_arguments([*SMALL.split(), "--threads", "1", "--out", str(tmp_path / "a")]))
    assert "saved the weights with the lowest held-out loss" in capsys.readouterr().out
    weights = safetensors.read(tmp_path / "a" / "model.safetensors")
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float16)}
    model, tokenizer = npgpt.GPT2.from_pretrained(tmp_path / "a"), Tokenizer.from_pretrained(tmp_path / "a")
    assert model.config.vocab_size == tokenizer.vocab_size
    assert model.config.eos_token_id == tokenizer.eos_id
    card = (tmp_path / "a" / "README.md").read_text()
    assert f"python scripts/pretrain.py {SMALL} --threads 1" in card

    pretrain.run(*pretrain.parse_arguments([*SMALL.split(), "--threads", "1", "--out", str(tmp_path / "b")]))
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_training_lowers_the_loss(texts, tmp_path, capsys):
    arguments, command = pretrain.parse_arguments(
        [*SMALL.replace("--steps 6", "--steps 60").split(), "--threads", "1", "--lr", "1e-2", "--out", str(tmp_path)])
    pretrain.run(arguments, command)
    lowest = float(capsys.readouterr().out.rsplit("held-out loss, ", 1)[1].split(",")[0])
    assert lowest < np.log(300) - 2


@pytest.mark.parametrize(("arguments", "message"), [
    ("--steps 0", "--steps 0: "), ("--vocab-size 256", "--vocab-size 256: "), ("--seed -1", "--seed -1: "),
    ("--lr fast", "--lr"),
])
def test_wrong_arguments_end_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        pretrain.parse_arguments(arguments.split())
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1


def test_held_out_texts_stay_held_out_when_others_join():
    texts = [f"text {i}" for i in range(1000)]
    few, many = pretrain.split(texts[:500]), pretrain.split(texts)
    assert set(few[1]) <= set(many[1]) and 5 <= len(many[1]) <= 40
    assert sorted(many[0] + many[1]) == sorted(texts)


def test_the_embedded_model_is_small_whole_and_has_learned():
    model, tokenizer = npgpt.GPT2.from_pretrained("tiny"), Tokenizer.from_pretrained("tiny")
    assert 1_000_000 <= sum(tensor.data.size for tensor in model.parameters().values()) <= 3_000_000
    assert {array.dtype for array in safetensors.read(TINY / "model.safetensors").values()} == {np.dtype(np.float16)}
    assert sum(path.stat().st_size for path in TINY.iterdir()) < 6_000_000
    assert model.config.vocab_size == tokenizer.vocab_size and model.config.eos_token_id == tokenizer.eos_id

    def loss(text):
        return float(model.loss(npgpt.Batch.from_sequences([tokenizer.encode(text)])).data)

    english = "Return a copy of the object. If the file does not exist, an error is raised."
    assert loss(english) < 4 < loss(" ".join(reversed(english.split()))) - 2
    assert "python scripts/pretrain.py" in (TINY / "README.md").read_text()
