"""Flags: a row of the table is all that a flag needs."""

import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.adapters.lora_config import LoraConfig
from npgpt.commands import finetune, flags, settings
from npgpt.commands.flags import Flag, Parser
from npgpt.runtime.errors import FormatError
from npgpt.training.fit import FitConfig
from npgpt.training.train import TrainConfig

SETTINGS = settings.all_settings()
# Each flag as it may be typed, and its value in TOML and in config.json.
VALUES = {
    "model": "tiny", "revision": "main", "tokenizer": "t", "data": "a.txt", "val_data": "b.txt", "val_fraction": 0.25, "split": "blank",
    "separator": "||", "template": "{a}\\n{b}", "train_on_prompt": True, "special_tokens": True, "max_length": 12,
    "rank": 3, "alpha": 1.5, "dropout": 0.0, "targets": "c_attn,c_fc", "rslora": True, "dora": True, "init": "pissa",
    "lr_ratio": 16.0, "add_tokens": ["<|a|>", "b"], "adapter": "c", "full": True, "epochs": 2, "max_steps": 7,
    "batch_size": 2, "batch_tokens": 99, "accumulate": 2, "lr": 1e-5, "weight_decay": 0.5, "decay_all": True,
    "warmup": 3, "schedule": "cosine",
    "grad_clip": 0.0, "seed": 5, "threads": 2, "checkpoint": True, "save_every": 0, "keep": 2, "eval_every": 4,
    "keep_best": True, "patience": 6, "samples": 0, "sample_prompts": "c.txt",
}


def typed(key):
    """A setting as words of a command line."""
    value = VALUES[key]
    words = [] if value is True else value if isinstance(value, list) else [value]
    return [SETTINGS[key].name, *map(str, words)]


def test_every_setting_is_tried():
    assert VALUES.keys() == SETTINGS.keys()


@pytest.mark.parametrize("key", VALUES)
def test_a_setting_is_the_same_from_flags_toml_and_config_json(tmp_path, key):
    value = VALUES[key]
    assert finetune.parse_arguments(typed(key)) == {key: value}
    for name in (key, key.replace("_", "-")):
        (tmp_path / "s.toml").write_text(f"{name} = {json.dumps(value)}")
        assert settings.read_settings(tmp_path / "s.toml") == ({key: value}, False)
    whole = settings.new_settings({"model": "model", key: value})
    assert whole[key] == value
    (tmp_path / "config.json").write_text(json.dumps({"settings": whole}))
    read, of_run = settings.read_settings(tmp_path / "config.json")
    assert of_run
    assert settings.new_settings(read) == whole


def test_settings_of_the_call_are_in_no_file(tmp_path):
    of_the_call = [flag.key for flag in settings.FLAGS if flag.of_the_call]
    assert of_the_call == ["max_memory", "out", "config", "resume", "preview", "quiet"]
    for key in of_the_call:
        (tmp_path / "s.toml").write_text(f"{key} = 1")
        with pytest.raises(FormatError, match=f"{key} belongs to one call"):
            settings.read_settings(tmp_path / "s.toml")


@pytest.mark.parametrize("of_class", [LoraConfig, TrainConfig, FitConfig])
def test_defaults_are_those_of_the_configurations(of_class):
    defaults = {key: flag.default for key, flag in SETTINGS.items()}
    made, plain = settings.configuration(of_class, defaults), of_class()
    for flag in SETTINGS.values():
        if flag.sets[0] is of_class:
            one, other = getattr(made, flag.sets[1]), getattr(plain, flag.sets[1])
            assert one == other or list(one) == list(other), flag.name
    if of_class is not LoraConfig:  # which has fields that finetune leaves alone
        assert {flag.sets[1] for flag in SETTINGS.values() if flag.sets[0] is of_class} == {
            field.name for field in dataclasses.fields(of_class)}


def test_keys_that_flags_name_are_those_of_settings():
    assert {name for flag in settings.FLAGS for name in (*flag.idle_with, flag.needs) if name} <= SETTINGS.keys()
    assert len({flag.key for flag in settings.FLAGS}) == len(settings.FLAGS)


@pytest.fixture
def one_more_flag():
    """A row more in finetune's table."""
    flag = Flag("--lora-bias", "a bias beside B", bool, False, sets=(LoraConfig, "lora_bias"), idle_with=("full",))
    settings.FLAGS.append(flag)
    yield
    settings.FLAGS.remove(flag)


def test_a_new_flag_is_one_row(one_more_flag, tmp_path, monkeypatch, capsys, model, texts):
    """The parser, --help, TOML, config.json, the adapter, the resumed run and what has no effect: all know it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        finetune.parse_arguments(["--help"])
    assert re.search(r"^  --lora-bias +a bias beside B$", capsys.readouterr().out, re.M)
    (tmp_path / "s.toml").write_text("lora-bias = true")
    common = ["--model", str(model), "--data", str(texts), "--max-steps", "1", "--samples", "0", "--quiet"]
    assert finetune.main(finetune.parse_arguments([*common, "--config", "s.toml", "--out", "run"])) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["lora_bias"] is True
    assert json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())["lora_bias"] is True
    assert finetune.main(finetune.parse_arguments(["--resume", "run", "--lora-bias", "--quiet"])) == 0
    with pytest.raises(Exception, match="--lora-bias would have no effect with --full"):
        finetune.main(finetune.parse_arguments([*common, "--full", "--lora-bias"]))


# Parsers


FLAGS = [
    Flag("files", "what to read", flags.path, many="+", metavar="FILE"),
    Flag("--out", "what to write", required=True, metavar="FILE"),
    Flag("--size", "how much", int, 3, least=1), Flag("--rate", "how fast", float, 3e-4), Flag("--fast", "very", bool),
    Flag("--word", "given again", again=True, default=(), group="words"),
    Flag("--name", "one of these", default="a", choices=("a", "b"), group="words"),
]


def test_defaults_are_filled_in():
    args = Parser("What it does.", FLAGS).parse(["a", "b", "--out", "c", "--word", "x", "--word", "y"])
    assert [path.name for path in args.files] == ["a", "b"]
    assert (args.out, args.size, args.rate, args.fast, args.word, args.name) == ("c", 3, 3e-4, None, ["x", "y"], "a")
    assert Parser("", FLAGS).given(["a", "--out", "c"]).keys() == {"files", "out"}
    assert Parser("", FLAGS).parse(["a", "--out", "c"]).word == []  # as JSON would have it


def test_help_is_made_of_the_rows():
    text = Parser("What it does, in 100 % of cases.\n\n    an example", FLAGS).format_help()
    assert " FILE [FILE ...] --out FILE [FLAG ...]\n" in text
    for line in ("What it does, in 100 % of cases.\n\n    an example\n", "\nwords:\n",
                 "  --size N  how much (default 3)\n", "  --rate X  how fast (default 0.0003)\n", "  --fast  very\n",
                 "  --name {a,b}  one of these (default a)\n"):
        assert re.sub(" +", " ", line) in re.sub(" +", " ", text), line


@pytest.mark.parametrize("argv, message", [
    (["a", "--out", "b", "--size", "0"], "--size 0: it must be at least 1"),
    (["", "--out", "b"], "argument FILE: it must not be empty"),
    (["a"], "the following arguments are required: --out"),
])
def test_what_is_wrong_is_said_in_a_line(capsys, argv, message):
    with pytest.raises(SystemExit) as end:
        Parser("", FLAGS).parse(argv)
    assert end.value.code == 2
    assert re.fullmatch(rf"error: {re.escape(message)} \(see \S+ --help\)\n", capsys.readouterr().err)


@pytest.mark.parametrize("message, named", [
    ("lora_alpha = 0: it must be positive", "--alpha 0: it must be positive"),
    ("LoRA rank r = 0: it must be", "--rank 0: it must be"),
    ("use_dora does not go with init_lora_weights = 'pissa'", "--dora does not go with --init 'pissa'"),
    ("batch_size = 3, max_steps = 0: wrong", "--batch-size 3, --max-steps 0: wrong"),
    ("settings.max_steps was 3 and is 4", "settings.max_steps was 3 and is 4"),
    ("the seed of the epochs = 3", "--epochs 3"),
    ("a/lora_alpha.txt cannot be read", "a/lora_alpha.txt cannot be read"),
    ("resid_pdrop = 2 in the model's configuration", "resid_pdrop = 2 in the model's configuration"),
])
def test_messages_name_flags(message, named):
    assert flags.named(message, settings.FLAGS) == named


@given(st.text("\\nta\n\t").filter(lambda text: "\\\n" not in text and "\\\t" not in text))
def test_nearly_any_text_can_be_typed_in_one_line(text):
    typed = flags.escaped(text)
    assert flags.unescaped(typed) == text
    assert not {"\n", "\t"} & set(typed)


@pytest.mark.parametrize("typed, text", [
    (r"a\nb\tc", "a\nb\tc"), (r"a\\nb", r"a\nb"), (r"\\\\", r"\\\\"), (r"\d\x", r"\d\x"), (None, None), ("", "")])
def test_escapes(typed, text):
    assert flags.unescaped(typed) == text
