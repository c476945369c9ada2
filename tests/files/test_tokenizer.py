"""The tokenizer: both kinds of files, the end-of-text id, round trips, and refusals."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from npgpt.files import hub
from npgpt.files.tokenizer import END_OF_TEXT, Tokenizer, _byte_level_alphabet
from npgpt.runtime.errors import ConfigError, FileError, FormatError

SHARED = Path(__file__).parents[3] / "shared"
TEXT = "the cat sat on the mat; the hat that the cat had sat on the mat.\n"
SIZE = 275  # end-of-text, the 256 bytes and 18 merges, with which every word of TEXT is one token


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """A folder with a byte-level BPE in both kinds of files. tokenizer.json asks for padding, cutting, additions."""
    folder = tmp_path_factory.mktemp("bpe")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=SIZE, initial_alphabet=alphabet, special_tokens=[END_OF_TEXT], show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.model.save(str(folder))
    eos = tokenizer.token_to_id(END_OF_TEXT)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, eos)]
    )
    tokenizer.enable_padding(length=50, pad_id=eos, pad_token=END_OF_TEXT)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module", params=["tokenizer.json", "vocab.json and merges.txt"])
def tokenizer(request, bpe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("form")
    for name in request.param.split(" and "):
        shutil.copy(bpe / name, folder)
    return Tokenizer.from_pretrained(folder)


def words(folder, vocab, config=None):
    """A folder whose tokenizer.json knows only these words and has no end-of-text token."""
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(vocab)}, unk_token="?")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_encode_gives_the_merged_ids_and_nothing_else(tokenizer, bpe):
    """One token for each word: no padding, no cutting, no end of text around it, no space before it."""
    vocab = json.loads((bpe / "vocab.json").read_text())
    ids = tokenizer.encode("the cat sat")
    assert ids.dtype == np.int64 and ids.ndim == 1
    assert ids.tolist() == [vocab[piece] for piece in ("the", "\u0120cat", "\u0120sat")]
    assert tokenizer.encode("").tolist() == [] and tokenizer.encode("").dtype == np.int64
    assert len(tokenizer.encode(TEXT * 20)) > 50
    assert tokenizer.vocab_size == len(vocab) == SIZE


def test_a_token_of_its_own(tokenizer):
    """A part of a character is shown as bytes, and everything else as text."""
    shown = [tokenizer.token(i) for i in tokenizer.encode(f"the cat\n<\u00e9\ufffd{END_OF_TEXT}\U0001f600").tolist()]
    assert shown == ["the", " cat", "\n", "<", r"\xc3", r"\xa9", r"\xef", r"\xbf", r"\xbd", END_OF_TEXT,
                     r"\xf0", r"\x9f", r"\x98", r"\x80"]
    for i in (-1, SIZE, 1 << 40):
        with pytest.raises(ConfigError, match=f"there is no token {i}: ids go from 0 to {SIZE - 1}"):
            tokenizer.token(i)


def test_every_byte_has_its_letter(tokenizer):
    """The alphabet is `tokenizers`' own, and each byte's token is shown as that byte."""
    alphabet = _byte_level_alphabet()
    assert set(alphabet) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert sorted(alphabet.values()) == list(range(256))
    for letter, byte in alphabet.items():
        i = tokenizer._tokenizer.token_to_id(letter)
        assert tokenizer.token(i) == (chr(byte) if byte < 128 else rf"\x{byte:02x}")


def test_a_token_that_holds_a_part_of_a_character_and_more(tmp_path):
    letters = {letter: i for i, letter in enumerate("\u0120\u00f0\u0141")}
    vocab = {**letters, "\u0120\u00f0": 3, "\u00f0\u0141": 4}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n\u0120 \u00f0\n\u00f0 \u0141\n", encoding="utf-8")
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.token(3) == r" \xf0"
    assert tokenizer.token(4) == r"\xf0\x9f"


def test_a_token_of_a_vocabulary_of_words(tmp_path):
    tokenizer = Tokenizer.from_pretrained(words(tmp_path, ["?", "caf\u00e9", "the"]))
    assert [tokenizer.token(i) for i in range(3)] == ["?", "caf\u00e9", "the"]


def test_end_of_text_is_one_id_and_its_literal_text_encodes_to_it(tokenizer):
    eos = tokenizer.eos_id
    assert isinstance(eos, int)
    assert tokenizer.encode(END_OF_TEXT).tolist() == [eos]
    ids = tokenizer.encode(f"the cat{END_OF_TEXT}the")
    assert ids.tolist() == [*tokenizer.encode("the cat"), eos, *tokenizer.encode("the")]
    assert tokenizer.decode(ids) == f"the cat{END_OF_TEXT}the"


def test_special_tokens_that_are_spelled_out_can_be_plain_text(tokenizer, bpe):
    """The ids are those of BPE for the characters, as with transformers' split_special_tokens=True."""
    eos, text = tokenizer.eos_id, f"the cat{END_OF_TEXT}the"
    bare = tokenizers.Tokenizer.from_file(str(bpe / "tokenizer.json")).model  # which knows of no added token
    letters = bare.tokenize(END_OF_TEXT[:2]), bare.tokenize("endoftext"), bare.tokenize(END_OF_TEXT[-2:])
    expected = [*tokenizer.encode("the cat"), *(token.id for part in letters for token in part),
                *tokenizer.encode("the")]
    ids = tokenizer.encode(text, split_special_tokens=True)
    assert eos not in ids.tolist() == expected and ids.dtype == np.int64
    assert tokenizer.decode(ids) == text
    for split in (False, True):
        batch = tokenizer.encode_batch([text, "the", ""], split_special_tokens=split)
        assert [ids.tolist() for ids in batch] == [
            tokenizer.encode(each, split_special_tokens=split).tolist() for each in (text, "the", "")]
    assert tokenizer.encode(text).tolist().count(eos) == 1, "one way of reading does not change the other"


def test_added_tokens_are_words_unless_they_are_special(bpe):
    inner = tokenizers.Tokenizer.from_file(str(bpe / "tokenizer.json"))
    inner.add_special_tokens(["<|user|>"])
    inner.add_tokens(["covid-19", "<end>"])
    tokenizer = Tokenizer(inner, eos_id=SIZE + 2)
    assert tokenizer.special_tokens == {END_OF_TEXT: 0, "<|user|>": SIZE, "<end>": SIZE + 2}
    text = "<|user|>covid-19<end>"
    assert tokenizer.encode(text).tolist() == [SIZE, SIZE + 1, SIZE + 2]
    ids = tokenizer.encode(text, split_special_tokens=True)
    assert SIZE + 1 in ids and SIZE not in ids and SIZE + 2 not in ids and tokenizer.decode(ids) == text


def test_texts_are_read_in_two_ways_at_once(bpe):
    """From threads that share a tokenizer."""
    text, tokenizer = f"the cat{END_OF_TEXT}", Tokenizer.from_pretrained(bpe)
    ways = [False, True] * 200
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda split: tokenizer.encode(text, split_special_tokens=split).tolist(), ways))
    assert [0 in ids for ids in found] == [not split for split in ways]
    assert len({len(ids) for ids in found}) == 2


def test_decode_takes_any_row_of_integers(tokenizer):
    ids = tokenizer.encode("the cat")
    for form in (ids, ids.tolist(), tuple(ids), ids.astype(np.uint16), ids[::-1][::-1]):
        assert tokenizer.decode(form) == "the cat"
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode(tokenizer.encode("\u2603")[:1]) == "\ufffd"
    assert tokenizer.decode([*ids, tokenizer.vocab_size]) == "the cat"


def test_both_forms_agree_and_saving_keeps_everything(bpe, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(bpe / name, tmp_path)
    forms = [Tokenizer.from_pretrained(bpe), Tokenizer.from_pretrained(tmp_path)]
    for form in list(forms):
        form.save(tmp_path / "saved" / "here")
        assert [path.name for path in (tmp_path / "saved" / "here").iterdir()] == ["tokenizer.json"]
        forms.append(Tokenizer.from_pretrained(tmp_path / "saved" / "here"))
    text = f"{TEXT}\u00e9 \u2603  \t{END_OF_TEXT} don't that123"
    ids = forms[0].encode(text).tolist()
    assert all(form.encode(text).tolist() == ids and form.decode(ids) == text for form in forms)
    assert len({form.eos_id for form in forms}) == len({form.vocab_size for form in forms}) == 1


@given(st.text() | st.lists(st.sampled_from([END_OF_TEXT, "the cat", " ", "\n", "\u00e9", "<|end"])).map("".join),
       st.booleans())
def test_any_text_survives_a_round_trip(tokenizer, text, split):
    ids = tokenizer.encode(text, split_special_tokens=split)
    assert tokenizer.decode(ids) == text
    assert not (split and tokenizer.eos_id in ids)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_without_the_token_config_names_the_end_of_text(tmp_path):
    tokenizer = Tokenizer.from_pretrained(words(tmp_path, ["stop", "go", "?"], {"eos_token_id": 0}))
    assert (tokenizer.eos_id, tokenizer.vocab_size, tokenizer.encode("go stop").tolist()) == (0, 3, [1, 0])


def test_the_vocabulary_comes_before_the_config(tmp_path):
    assert Tokenizer.from_pretrained(words(tmp_path, ["go", END_OF_TEXT, "?"], {"eos_token_id": 0})).eos_id == 1


def test_a_caller_with_a_tokenizer_in_hand_may_say_what_ends_a_text(bpe):
    tokenizer = tokenizers.Tokenizer.from_file(str(bpe / "tokenizer.json"))
    assert Tokenizer(tokenizer).eos_id == tokenizer.token_to_id(END_OF_TEXT) == 0
    assert Tokenizer(tokenizer, eos_id=7).eos_id == 7


@pytest.mark.parametrize(
    "config", [None, {}, *({"eos_token_id": value} for value in (None, 3, -1, "0", True, [3], [], 0.0))]
)
def test_without_any_end_of_text_only_asking_for_it_fails(tmp_path, config):
    tokenizer = Tokenizer.from_pretrained(words(tmp_path, ["stop", "go", "?"], config))
    assert tokenizer.encode("go").tolist() == [1]
    with pytest.raises(ConfigError, match="no end-of-text token"):
        _ = tokenizer.eos_id


def test_vocab_without_the_token_does_not_grow(bpe, tmp_path):
    """The model would have no row for a new id."""
    shutil.copy(bpe / "merges.txt", tmp_path)
    vocab = json.loads((bpe / "vocab.json").read_text())
    del vocab[END_OF_TEXT]
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.vocab_size == len(vocab) and tokenizer.decode(tokenizer.encode(END_OF_TEXT)) == END_OF_TEXT


@pytest.mark.parametrize("missing", [["tokenizer.json", "vocab.json"], ["tokenizer.json", "merges.txt"]])
def test_a_folder_without_the_files_is_refused(bpe, tmp_path, missing):
    folder = shutil.copytree(bpe, tmp_path / "copy")
    for name in missing:
        (folder / name).unlink()
    with pytest.raises(FileError, match=r"expected tokenizer\.json, or vocab\.json and merges\.txt"):
        Tokenizer.from_pretrained(folder)


def test_a_file_that_vanishes_is_a_file_error(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "file", lambda *_, **__: tmp_path / "tokenizer.json")
    with pytest.raises(FileError, match=r"cannot read .*tokenizer\.json: No such file"):
        Tokenizer.from_pretrained("gpt2")


def test_the_hub_is_asked_once_for_either_form_with_the_callers_options(bpe, monkeypatch):
    asked = []

    def file(*arguments, **options):
        asked.append((arguments, options))
        return bpe / "tokenizer.json"

    monkeypatch.setattr(hub, "file", file)
    assert Tokenizer.from_pretrained("someone/model", revision="v1", local_files_only=True).vocab_size == SIZE
    files = ("tokenizer.json", "vocab.json")
    assert asked == [(("someone/model", files), {"revision": "v1", "local_files_only": True})]


@pytest.mark.parametrize(
    "name, content",
    [
        ("tokenizer.json", b""),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"[1, 2]"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}'),
        ("tokenizer.json", b"\x00\xff"),
        ("vocab.json", b""),
        ("vocab.json", b"[1, 2]"),
        ("vocab.json", b'{"a": 0}'),
        ("vocab.json", b'{"a": "0"}'),
        ("merges.txt", b"one two three\n"),
        ("merges.txt", b"not there\n"),
        ("merges.txt", b"\x00\xff"),
    ],
)
def test_a_corrupt_file_is_refused_in_one_line(bpe, tmp_path, name, content):
    folder = shutil.copytree(bpe, tmp_path / "copy")
    if name != "tokenizer.json":
        (folder / "tokenizer.json").unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(FormatError) as caught:
        Tokenizer.from_pretrained(folder)
    assert str(folder / name) in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
def test_a_truncated_tokenizer_is_refused(bpe, tmp_path, share):
    data = (bpe / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(data[: int(share * len(data))])
    with pytest.raises(FormatError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer.from_pretrained(tmp_path)


def test_text_that_cannot_be_encoded_is_refused(tokenizer, tmp_path):
    for text in ("half a pair: \ud83d", None, 3, b"bytes"):
        with pytest.raises(ConfigError, match="not a string of valid Unicode"):
            tokenizer.encode(text)
    few = Tokenizer.from_pretrained(words(tmp_path, ["stop", "go"]))
    with pytest.raises(ConfigError, match="cannot encode 'wait'"):
        few.encode("wait")


@pytest.mark.parametrize("ids", [[-1], [2**40], [2**70], [1.5], [[1, 2]], [[1], [2, 3]], 3, "the", None])
def test_ids_that_are_no_row_of_integers_are_refused(tokenizer, ids):
    with pytest.raises(ConfigError, match="expected one row of integers"):
        tokenizer.decode(ids)


def test_saving_where_nothing_can_be_written_is_an_error(tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write"):
        tokenizer.save(tmp_path / "file")


def test_importing_the_module_does_not_wait_for_the_library():
    code = "import sys, npgpt.files.tokenizer; sys.exit('tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


if SHARED.is_dir():

    def test_gpt2_as_released(tmp_path):
        """Both kinds of official files, on running text; the ids of 'Hello world' are known from OpenAI's encoder."""
        released = SHARED / "data" / "gpt2-tokenizer"
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(released / name, tmp_path)
        one, other = Tokenizer.from_pretrained(released), Tokenizer.from_pretrained(tmp_path)
        for tokenizer in (one, other):
            assert tokenizer.encode("Hello world").tolist() == [15496, 995]
            assert (tokenizer.eos_id, tokenizer.vocab_size) == (50256, 50257)
        for name in ("tinyshakespeare.txt", "wikitext2-test-tokenised.txt", "lambada_test.jsonl"):
            text = (SHARED / "data" / name).read_text(encoding="utf-8")[:20_000]
            ids = one.encode(text)
            assert len(ids) > 2000 and np.array_equal(ids, other.encode(text)) and one.decode(ids) == text

    def test_a_trained_model_with_its_own_vocabulary():
        tokenizer = Tokenizer.from_pretrained(SHARED / "models" / "chemts-zinc-gpt2-0.2m")
        assert (tokenizer.eos_id, tokenizer.vocab_size) == (14, 66)
        assert tokenizer.encode("[C@H]").tolist() == [27] and tokenizer.decode([17, 27, 22]) == "C[C@H]O"


# Added tokens


def test_added_tokens_have_the_next_ids_and_are_never_cut():
    tokenizer = Tokenizer.from_pretrained("tiny")
    n, plain = tokenizer.vocab_size, tokenizer.encode("<|user|>", split_special_tokens=True)
    assert tokenizer.add_tokens(["<|user|>", "<|end|>", "<|user|>"]) == [n, n + 1]
    assert np.array_equal(tokenizer.encode("<|user|>", split_special_tokens=True), plain)
    assert tokenizer.encode("<|user|>").tolist() == [n]
    assert tokenizer.vocab_size == n + 2
    ids = tokenizer.encode("a<|user|> list<|end|>")
    assert ids[1] == n
    assert ids[-1] == n + 1
    assert tokenizer.decode(ids) == "a<|user|> list<|end|>"
    assert tokenizer.token(n) == "<|user|>"


def test_tokens_that_are_there_are_not_added_again(tmp_path):
    tokenizer = Tokenizer.from_pretrained("tiny")
    n = tokenizer.vocab_size
    assert tokenizer.add_tokens([END_OF_TEXT, "<|user|>"]) == [n]
    assert tokenizer.add_tokens(["<|user|>"]) == []
    tokenizer.save(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    assert again.to_dict() == tokenizer.to_dict()
    assert again.eos_id == tokenizer.eos_id


def test_one_token_or_any_that_can_be_listed():
    tokenizer = Tokenizer.from_pretrained("tiny")
    n = tokenizer.vocab_size
    assert tokenizer.add_tokens("<|user|>") == [n]
    assert tokenizer.add_tokens(token for token in ["<a>", "<b>"]) == [n + 1, n + 2]


@pytest.mark.parametrize("token", ["", " ", 3, None, "a\nb", "\udcff"])
def test_what_cannot_be_a_token(token):
    tokenizer = Tokenizer.from_pretrained("tiny")
    before = tokenizer.vocab_size
    with pytest.raises(ConfigError, match=r"cannot add the token .*: it must be a string of printable characters"):
        tokenizer.add_tokens(["<|user|>", token])
    assert tokenizer.vocab_size == before


def test_a_vocabulary_with_gaps_cannot_grow():
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0, "b": 3}, merges=[]))
    with pytest.raises(ConfigError, match="its ids are not the numbers from 0 to 1"):
        Tokenizer(inner).add_tokens(["<|x|>", "<|y|>"])


BROKEN = {  # fields of a tokenizer.json with which `tokenizers` panics
    "at the first use": {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}},
    "at the first use of another kind": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "on loading": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
}


@pytest.mark.parametrize("moment", BROKEN)
def test_a_panic_is_one_line_that_names_the_file(bpe, tmp_path, moment, capfd):
    content = json.loads((bpe / "tokenizer.json").read_text()) | BROKEN[moment]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    for use in (lambda tokenizer: tokenizer.encode("a b"), lambda tokenizer: tokenizer.encode_batch(["a b", "c"]),
                lambda tokenizer: tokenizer.encode("a b", split_special_tokens=True)):
        with pytest.raises(FormatError, match=rf"^{tmp_path}/tokenizer\.json: ") as error:
            use(Tokenizer.from_pretrained(tmp_path))
        assert "\n" not in str(error.value)
    capfd.readouterr()  # Rust itself says more on standard error


@pytest.mark.parametrize("method, argument", [("encode", "a"), ("encode_batch", ["a"]), ("decode", [1]),
                                              ("add_tokens", "<|x|>")])
def test_only_a_panic_and_errors_are_turned_into_one_line(bpe, method, argument):
    class PanicException(BaseException):
        pass

    class Library:
        def __init__(self, error):
            self.error = error

        def __getattr__(self, name):
            def fail(*_, **__):
                raise self.error
            return (lambda *_: {}) if name == "get_vocab" else fail

    for error, turned in ((PanicException("index\nout of range"), FormatError), (Exception("no"), ConfigError),
                          (KeyboardInterrupt(), KeyboardInterrupt), (SystemExit(), SystemExit)):
        tokenizer = Tokenizer.from_pretrained(bpe)
        tokenizer._tokenizer = Library(error)
        with pytest.raises(turned) as raised:
            getattr(tokenizer, method)(argument)
        assert turned not in (FormatError, ConfigError) or f"{bpe}/tokenizer.json" in str(raised.value)


def test_a_token_with_the_replacement_character_in_no_byte_level_vocabulary(tmp_path):
    tokenizer = Tokenizer.from_pretrained(words(tmp_path, ["?", "\N{REPLACEMENT CHARACTER}x"]))
    assert tokenizer.token(1) == "\N{REPLACEMENT CHARACTER}x"
