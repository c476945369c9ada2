import pytest

from npgpt import LoraConfig, add_lora
from npgpt.adapters.matching import match_targets
from npgpt.adapters.stack import updates
from npgpt.checking.gradcases import small_model
from npgpt.lora import adapted_layers
from npgpt.runtime.errors import ConfigError
from tests.adapters.test_updates import config, fresh

ALL = [f"h.{layer}.{name}" for layer in range(2) for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]


@pytest.mark.parametrize(
    "targets, chosen",
    [
        (["c_attn"], ["h.0.attn.c_attn", "h.1.attn.c_attn"]),
        (("c_attn",), ["h.0.attn.c_attn", "h.1.attn.c_attn"]),
        (["c_proj"], ["h.0.attn.c_proj", "h.0.mlp.c_proj", "h.1.attn.c_proj", "h.1.mlp.c_proj"]),
        (["attn.c_proj"], ["h.0.attn.c_proj", "h.1.attn.c_proj"]),
        (["h.1.mlp.c_fc", "c_attn"], ["h.0.attn.c_attn", "h.1.attn.c_attn", "h.1.mlp.c_fc"]),
        (["transformer.h.0.mlp.c_fc"], ["h.0.mlp.c_fc"]),
        ("all-linear", ALL),
        (r".*\.0\.(attn\.c_attn|mlp\.c_fc)", ["h.0.attn.c_attn", "h.0.mlp.c_fc"]),
        (r"transformer\.h\.1\.mlp\.c_proj", ["h.1.mlp.c_proj"]),
    ],
)
def test_targets_are_matched_by_pefts_rules(targets, chosen):
    matched = match_targets(small_model(), LoraConfig(target_modules=targets))
    assert [name.removeprefix("transformer.") for name in matched] == chosen


@pytest.mark.parametrize(
    "targets, message",
    [
        (["c_attn", "q_proj"], r"'q_proj' matches no module.* attn\.c_attn, attn\.c_proj, mlp\.c_fc, mlp\.c_proj"),
        (["attn"], r"'transformer\.h\.0\.attn' is of class Attention, neither a linear layer nor an embedding"),
        (["ln_f"], r"'transformer\.ln_f' is of class LayerNorm, neither a linear layer nor an embedding"),
        (["attn.c"], "matches no module"),  # the end of a name means whole parts of it
        (["fc"], "matches no module"),
        ("c_attn", "matches no module as a regular expression"),
        (r"h\.0\..*", "matches no module as a regular expression"),  # the whole name begins with transformer.
        (r"transformer\.h\.0\.attn\.c", "matches no module as a regular expression"),  # and is matched to its end
        ("(", "not a regular expression"),
    ],
)
def test_a_target_that_cannot_be_adapted_is_an_error_and_changes_nothing(targets, message):
    model = small_model()
    with pytest.raises(ConfigError, match=message) as error:
        add_lora(model, LoraConfig(target_modules=targets))
    assert "\n" not in str(error.value)
    assert not adapted_layers(model)
    assert all(tensor.trainable for tensor in model.parameters().values())


@pytest.mark.parametrize("fields, chosen", [
    ({"exclude_modules": ["h.0.attn.c_attn"]}, ["h.0.mlp.c_fc", "h.1.attn.c_attn", "h.1.mlp.c_fc"]),
    ({"exclude_modules": r".*\.1\..*"}, ["h.0.attn.c_attn", "h.0.mlp.c_fc"]),
    ({"layers_to_transform": 1}, ["h.1.attn.c_attn", "h.1.mlp.c_fc"]),
    ({"layers_to_transform": [0], "layers_pattern": "h"}, ["h.0.attn.c_attn", "h.0.mlp.c_fc"]),
    ({"layers_to_transform": [0], "target_modules": ["c_attn", "transformer.h.1.mlp.c_fc"]},
     ["h.0.attn.c_attn", "h.1.mlp.c_fc"]),  # a whole name is meant, whatever its layer
    ({"modules_to_save": ["c_fc"]}, ["h.0.attn.c_attn", "h.1.attn.c_attn"]),
    ({"target_modules": ["wte", "lm_head"]}, ["wte", "lm_head"]),
    ({"target_modules": "ALL-LINEAR", "exclude_modules": ["c_proj", "c_fc"]}, ["h.0.attn.c_attn", "h.1.attn.c_attn"]),
])
def test_which_modules_are_meant(fields, chosen):
    matched = match_targets(small_model(), config("plain", **fields))
    assert [name.removeprefix("transformer.") for name in matched] == chosen


def test_the_first_pattern_that_matches_decides():
    patterns = {"h.1.mlp.c_fc": 64, "c_fc": 1}
    model = fresh("plain", alpha_pattern=patterns)
    assert [update.scale for name, update in updates(model).items() if "c_fc" in name] == [1 / 2, 64 / 2]
    model = fresh("plain", alpha_pattern=dict(reversed(patterns.items())))
    assert [update.scale for name, update in updates(model).items() if "c_fc" in name] == [1 / 2, 1 / 2]
