"""The files of a tokenizer mean what they mean to transformers. tests/parity/test_vocabulary.py compares the two."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

import npgpt
from npgpt import Tokenizer, data
from npgpt.adapters import pretrained
from npgpt.evaluation.questions import encode_pair
from npgpt.runtime.errors import FormatError

TINY = json.loads((Path(npgpt.__file__).parent / "tiny" / "tokenizer.json").read_text(encoding="utf-8"))
END = 3071
MAP = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
       "additional_special_tokens": ["<|user|>"]}
ADDED = {"<|user|>": 3072, "covid-19": 3073}


def old_files(folder, **files):
    """The two original files, and JSON files by the names of the arguments."""
    vocab = TINY["model"]["vocab"] | {"<|endoftext|>": END}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in TINY["model"]["merges"]]
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def new_file(folder, **files):
    old_files(folder, **files)
    Tokenizer.from_pretrained(npgpt.files.hub.TINY).save(folder)
    return folder


def ids(folder, text, **options):
    return Tokenizer.from_pretrained(folder).encode(text, **options).tolist()


def test_added_tokens(tmp_path):
    old_files(tmp_path, added_tokens=ADDED, special_tokens_map=MAP)
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("<|user|>A covid-19").tolist() == [3072, 32, 220, 3073]
    assert tokenizer.special_tokens == {"<|endoftext|>": END, "<|user|>": 3072}
    assert 3072 not in tokenizer.encode("<|user|>covid-19", split_special_tokens=True)
    assert 3073 in tokenizer.encode("<|user|>covid-19", split_special_tokens=True)
    assert tokenizer.vocab_size == 3074


def test_the_list_in_the_newer_file_counts_alone(tmp_path):
    decoder = {"3072": {"content": "<|bot|>", "lstrip": True, "normalized": False, "rstrip": False,
                        "single_word": False, "special": True}}
    old_files(tmp_path, added_tokens=ADDED, special_tokens_map=MAP | {"pad_token": "[PAD]"},
              tokenizer_config={"added_tokens_decoder": decoder, "eos_token": "<|bot|>"})
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("A  <|bot|>").tolist() == [32, 3072]
    assert tokenizer.vocab_size == 3073 and tokenizer.eos_id == 3072


def test_a_special_token_without_an_id_gets_the_next_one(tmp_path):
    pad = {"content": "[PAD]", "lstrip": False, "normalized": False, "rstrip": True, "single_word": False}
    old_files(tmp_path, special_tokens_map=MAP | {"pad_token": pad})
    assert ids(tmp_path, "[PAD] A<|user|>") == [3072, 32, 3073]


@pytest.mark.parametrize("files, message", [
    ({"added_tokens": {"<|user|>": 3073}}, r"added_tokens\.json: token '<\|user\|>' must have id 3073, but .* is 3072"),
    ({"added_tokens": {"<|user|>": "x"}}, r"added_tokens\.json: the added tokens must map tokens to ids"),
    ({"tokenizer_config": {"added_tokens_decoder": {"3072": 5}}}, r"tokenizer_config\.json: the added tokens must map"),
    ({"tokenizer_config": {"added_tokens_decoder": [1]}}, r"tokenizer_config\.json: the added tokens must map"),
    ({"tokenizer_config": {"eos_token": 5}}, r"tokenizer_config\.json: the special tokens must be strings"),
    ({"special_tokens_map": {"additional_special_tokens": [None]}}, r"the special tokens must be strings"),
    ({"special_tokens_map": {"additional_special_tokens": [["a"]]}}, r"the special tokens must be strings"),
    ({"tokenizer_config": {"eos_token": {"content": "<e>", "lstrip": "x"}}}, "the added tokens must map tokens to ids"),
    ({"added_tokens": []}, r"added_tokens\.json holds a JSON list"),
])
def test_files_that_cannot_be_used(tmp_path, files, message):
    old_files(tmp_path, **files)
    with pytest.raises(FormatError, match=message) as error:
        Tokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("asked, right", [(True, [499, 475]), (False, [32, 475])])
def test_a_space_before_each_text(tmp_path, asked, right):
    old_files(tmp_path, tokenizer_config={"add_prefix_space": asked})
    assert ids(tmp_path, "A list") == right
    for name, then in (("GPT2TokenizerFast", right), ("GPT2Tokenizer", right), (None, [32, 475])):
        new_file(tmp_path, tokenizer_config={"add_prefix_space": asked, "tokenizer_class": name})
        assert ids(tmp_path, "A list") == then


def test_a_token_that_begins_every_text(tmp_path):
    old_files(tmp_path, tokenizer_config={"add_bos_token": True, "bos_token": "<|user|>"})
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("A list").tolist() == [3072, 32, 475]
    assert [found.tolist() for found in tokenizer.encode_batch(["A list", " A"])] == [[32, 475], [499]]
    assert tokenizer.decode(tokenizer.encode_batch(["A list"])[0]) == "A list"
    trained = data.encode_texts(tokenizer, ["A list", "A"], 8).sequences
    assert [trained[i].tolist() for i in range(2)] == [[3072, 32, 475, END], [3072, 32, END]]
    assert [mask.tolist() for mask in trained.loss_masks] == [[0, 1, 1, 1], [0, 1, 1]]
    pairs = [[found.tolist() for found in encode_pair(tokenizer, context, " list")] for context in ("A", "")]
    assert pairs == [[[3072, 32], [475]], [[END], [475]]]
    new_file(tmp_path)
    assert ids(tmp_path, "A list") == [32, 475]  # a tokenizer.json says all of it


@pytest.mark.parametrize("files, end, ends", [
    ({}, END, [END]),
    ({"config": {"eos_token_id": 5}}, END, [END, 5]),
    ({"config": {"eos_token_id": [5, 7]}}, END, [END, 5, 7]),
    ({"config": {"eos_token_id": 5}, "generation_config": {"eos_token_id": [7, END]}}, END, [END, 7]),
    ({"config": {"eos_token_id": 5}, "generation_config": {"eos_token_id": None}}, END, [END, 5]),
    ({"config": {"eos_token_id": 50256}}, END, [END]),
    ({"tokenizer_config": {"eos_token": "<|im_end|>"}, "config": {"eos_token_id": END}}, 3072, [3072, END]),
    ({"special_tokens_map": {"eos_token": {"content": "<|im_end|>"}}}, 3072, [3072]),
])
@pytest.mark.parametrize("write", [old_files, new_file])
def test_the_tokens_that_end_a_text(tmp_path, write, files, end, ends):
    tokenizer = Tokenizer.from_pretrained(write(tmp_path, **files))
    assert (tokenizer.eos_id, tokenizer.end_id, tokenizer.end_ids) == (end, end, ends)


@pytest.mark.parametrize("name, values, message", [
    ("tokenizer_config", {"do_lower_case": True, "add_eos_token": True, "model_max_length": 5, "x": None},
     "add_eos_token = True, do_lower_case = True;"),
    ("tokenizer_config", {"tokenizer_class": "CLIPTokenizer"}, "tokenizer_class = 'CLIPTokenizer';"),
    ("generation_config", {"temperature": 0.7, "top_k": 50, "eos_token_id": END, "max_length": 50,
                           "bad_words_ids": [[1]]},
     "bad_words_ids = [[1]], temperature = 0.7;"),
])
def test_keys_that_are_not_used_are_named_in_one_warning(tmp_path, name, values, message):
    old_files(tmp_path, **{name: values})
    message = rf"^{tmp_path}/{name}\.json: npgpt does not use {re.escape(message)}"
    with pytest.warns(UserWarning, match=message) as found:
        Tokenizer.from_pretrained(tmp_path)
    assert len(found) == 1


def test_the_files_of_gpt2_itself_warn_of_nothing(tmp_path):
    old_files(tmp_path, tokenizer_config={"model_max_length": 1024}, generation_config={
        "_from_model_config": True, "bos_token_id": 50256, "eos_token_id": 50256, "transformers_version": "4.26.0"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Tokenizer.from_pretrained(tmp_path)
    assert np.array_equal(Tokenizer.from_pretrained(tmp_path).start_ids, [])


def test_what_ends_a_text_is_saved(tmp_path):
    old_files(tmp_path, tokenizer_config={"eos_token": "<|im_end|>"}, config={"eos_token_id": [5, 3072]})
    before = Tokenizer.from_pretrained(tmp_path)
    before.save(tmp_path / "copy")
    after = Tokenizer.from_pretrained(tmp_path / "copy")
    assert after.eos_id == before.eos_id == 3072 and before.end_ids == [3072, 5] and after.end_ids == [3072]
    Tokenizer.from_pretrained("tiny").save(tmp_path / "tiny")
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == ["tokenizer.json"]


def test_an_adapters_tokenizer_ends_texts_as_the_base_does(tmp_path):
    config = npgpt.GPT2Config(vocab_size=3073, n_positions=8, n_embd=8, n_layer=1, n_head=2, eos_token_id=[5, 7])
    model = npgpt.GPT2(config, seed=0)
    model.save_pretrained(tmp_path / "base")
    old_files(tmp_path / "base", tokenizer_config={"eos_token": "<|im_end|>", "add_bos_token": True})
    npgpt.save_adapter(npgpt.add_lora(model, npgpt.LoraConfig(r=1)), tmp_path / "adapter")
    new_file(tmp_path / "adapter")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "adapter" / name).unlink()
    _, tokenizer = pretrained.base_of(str(tmp_path / "base"), adapters=[tmp_path / "adapter"])
    assert (tokenizer.eos_id, tokenizer.end_ids, tokenizer.start_ids.tolist()) == (3072, [3072, 5, 7], [END])
    (tmp_path / "adapter" / "tokenizer_config.json").write_text("{}")
    _, tokenizer = pretrained.base_of(str(tmp_path / "base"), adapters=[tmp_path / "adapter"])
    assert tokenizer.end_ids == [END]


def test_generation_ends_at_each_of_several_tokens():
    config = npgpt.GPT2Config(vocab_size=9, n_positions=64, n_embd=8, n_layer=1, n_head=2)
    model = npgpt.GPT2(config, seed=0)
    whole = npgpt.generate(model, [1], 40, seed=1).tolist()
    ends = [min(i for i in range(1, 41) if whole[i] == token) for token in (2, 3)]
    for eos_id, end in ((2, ends[0]), ([2], ends[0]), ([2, 3], min(ends)), (np.array([3, 2]), min(ends)), ((), 40)):
        assert npgpt.generate(model, [1], 40, seed=1, eos_id=eos_id).tolist() == whole[:end + 1]
    late = npgpt.generate(model, [1], 40, seed=1, eos_id=[2, 3], min_new_tokens=30).tolist()
    assert not {2, 3} & set(late[1:31])
    for _, text in npgpt.beam_search(model, [1], 3, 10, eos_id=[2, 3]):
        assert not {2, 3} & set(text[1:-1].tolist())
