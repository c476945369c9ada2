"""Regular expressions that come from a file: the same meaning as with `re`, and an end in every case."""

import itertools
import json
import random
import re
import time

import pytest

import npgpt
from npgpt import LoraConfig, add_lora, load_adapter, save_adapter
from npgpt.adapters import expressions
from npgpt.adapters.expressions import Expression, compiled
from npgpt.adapters.matching import match_targets
from npgpt.checking.gradcases import small_model
from npgpt.runtime.errors import ConfigError, FormatError

NAMES = [f"transformer.h.{i}.{part}" for i in (0, 1, 11) for part in
         ("ln_1", "attn", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")] + ["transformer.wte", "lm_head", "",
                                                                                     "aaaa"]
ENDLESS = [r"((\w+)+\.?)+!", r"(a|a)*b", r".*.*.*.*.*.*.*.*.*.*!", r"(?:(?=.)){4000000000}x", r"((((\w*)*)*)*)*!",
           r"(?:\w|\w)+(?<=!)", r"(?=(\w+\.?)+!).*", "(t|t)" + "(.|.)" * 30 + "!", r"(\w*){3,}!"]
USUAL = [  # as PEFT's documentation, Unsloth and people write them
    r".*\.(attn|mlp)\.c_.*", r"^(?!.*mlp).*\.c_proj$", r"transformer\.h\.([0-9]|1[01])\.attn\.c_attn",
    r"(?:.*?(?:language|text|h).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    r"(?:c_attn|c_proj|c_fc|k_proj|v_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:attn|mlp)\.(?:(?:c_attn|c_proj)))",
    r"(\w+\.)*c_attn", r"(?:\w+\.)+(?=c_fc).*", r"(?i)TRANSFORMER\.H\.\d+\.MLP\.C_FC", r"(?i:Trans)former\.wte",
    r"(\w+\.)*(?<=mlp\.)c_\w+", r"(\w+\.)*(?<!mlp\.)c_\w+", r"(?x) .* \. c_attn  # the first", r"(\w+\.?)+", ".+|", "",
    r"(?:(?:[a-z]+|\d)\.)*c_fc", r"(\w+\.){3,5}c_proj", r"(\w+\.){3}?attn", r"[^.]+(\.[^.]+)*\Z",
    r"(\w)+\.h\.(?P<n>\d+)\..*",
]


@pytest.mark.parametrize("text", USUAL)
@pytest.mark.parametrize("through", ["re or sets", "sets"])
def test_an_expression_means_what_it_means_to_re(text, through, monkeypatch):
    if through == "sets":
        monkeypatch.setattr(expressions, "MOST_WAYS", 0)
    ours, theirs = Expression(text), re.compile(text)
    assert through != "sets" or ours._re is None
    for name in NAMES:
        assert (ours.match(name), ours.fullmatch(name)) == (bool(theirs.match(name)), bool(theirs.fullmatch(name)))


def test_any_expression_means_what_it_means_to_re(monkeypatch):
    monkeypatch.setattr(expressions, "MOST_WAYS", 0)
    atoms = ["a", "b", r"\.", ".", r"\d", "[ab]", "[^.]", "attn", r"\b", "^", "$", r"h\.\d+", r"\B", "(?i:A)", r"\Z"]
    around = ["(?:{})*", "(?:{})+", "(?:{})?", "({})*?", "(?:{}){{1,2}}", "(?:{}){{2}}", "(?:{}){{2,}}", "(?={})",
              "(?!{})", "(?:{}|a)", "({}|)", "b{}", "{}b", "(?<=h){}", "(?<!ab|h\\.){}"]
    draw = random.Random(0)
    for _ in range(1500):
        text = draw.choice(atoms)
        for _ in range(draw.randrange(5)):
            text = draw.choice(around).format(text) + draw.choice(["", draw.choice(atoms)])
        if sum(map(text.count, "*+{")) > 4:  # `re` itself would not end
            continue
        ours, theirs = Expression(text), re.compile(text)
        for name in ["", "a", "ab", "aab", "h.1", "h.1.attn", "abab.a", "A.h"]:
            assert (ours.match(name), ours.fullmatch(name)) == (
                bool(theirs.match(name)), bool(theirs.fullmatch(name))), (text, name)


@pytest.mark.parametrize("text", ENDLESS)
def test_an_expression_that_re_never_ends_is_no_trouble(text):
    start = time.process_time()
    assert not any(compiled(text).fullmatch(name) for name in NAMES)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("text, message", [
    (r"((\w)\2?)+!", r"'\(\(\\\\w\)\\\\2\?\)\+!' has groupref beside many repeats"),
    ("|".join(["(a*)*"] * 9000), "takes more than 20,000 steps to match"),
    ("a" * 100_001, "has 100,001 characters; 100,000 are allowed"),
    ("(a", "is not a regular expression"),
])
def test_what_cannot_be_bounded_is_refused_in_one_line(text, message):
    with pytest.raises(ConfigError, match=message) as error:
        [compiled(text).fullmatch(name) for name in NAMES]
    assert "\n" not in str(error.value)


def test_a_name_of_any_length_ends():
    expression = compiled(r".*\.?.*!")
    assert expression._re is not None
    with pytest.raises(ConfigError, match="takes more than 20,000 steps"):
        expression.match("transformer." * 2000)


def test_the_same_expression_can_be_used_for_ever(monkeypatch):
    monkeypatch.setattr(expressions, "MOST_STEPS", 300)
    expression = Expression(r"(\w+\.)*c_attn")
    assert all(expression.fullmatch("h.0.c_attn") for _ in range(1000))


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern",
                                   "layers_pattern"])
@pytest.mark.parametrize("endless", [r"((\w+)+\.?)+!", r"((\w+)+\.?)+(!|_attn)"])
def test_no_field_of_an_adapter_can_hang(field, endless, tmp_path):
    model = add_lora(small_model(), LoraConfig(r=2))
    save_adapter(model, tmp_path)
    path = tmp_path / "adapter_config.json"
    value = {endless: 2} if field.endswith("_pattern") and field != "layers_pattern" else endless
    values = json.loads(path.read_text()) | {field: value}
    if field == "layers_pattern":
        values["layers_to_transform"] = [0, 1]
    path.write_text(json.dumps(values))
    start = time.process_time()
    try:
        load_adapter(small_model(), tmp_path)
    except FormatError as error:
        assert "\n" not in str(error)
    assert time.process_time() - start < 5


def test_a_config_made_in_python_cannot_hang_either():
    with pytest.raises(ConfigError, match="matches no module"):
        match_targets(small_model(), LoraConfig(target_modules=r"((\w+)+\.?)+!"))
    chosen = match_targets(small_model(), LoraConfig(target_modules=r"(\w+\.)+(?=c_fc)\w+"))
    assert chosen == ["transformer.h.0.mlp.c_fc", "transformer.h.1.mlp.c_fc"]


def test_names_of_usual_models_have_at_most_64_characters():
    models = small_model(), npgpt.GPT2.from_pretrained("tiny")
    names = itertools.chain.from_iterable(model.parameters() for model in models)
    assert max(map(len, names)) + len("transformer.") + 4 < expressions.NAME
