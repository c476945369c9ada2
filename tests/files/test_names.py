import pytest

from npgpt.files.names import MASK, WRAPPERS, parameter_name, unwrapped

WRITTEN = {
    "_orig_mod.transformer.h.0.attn.c_attn.weight": "h.0.attn.c_attn.weight",  # torch.compile(model)
    "transformer.h.0._orig_mod.attn.c_attn.weight": "h.0.attn.c_attn.weight",  # torch.compile of each block
    "module._orig_mod.transformer.wte.weight": "wte.weight",  # and then DistributedDataParallel
    "_orig_mod.module.transformer.wte.weight": "wte.weight",
    "_fsdp_wrapped_module.transformer.h.0._fsdp_wrapped_module._checkpoint_wrapped_module.ln_1.bias": "h.0.ln_1.bias",
    "_forward_module.module.model.transformer.ln_f.weight": "ln_f.weight",  # Lightning Fabric
    "model.transformer.wpe.weight": "wpe.weight",  # a LightningModule that calls it model
    "pretrained_model.lm_head.weight": "lm_head.weight",  # TRL's value head
    "base_model.model._orig_mod.transformer.h.1.mlp.c_fc.lora_A.weight": "h.1.mlp.c_fc.lora_A.weight",
    "module.base_model.model.h.1.mlp.c_fc.lora_A.weight": "h.1.mlp.c_fc.lora_A.weight",
    "transformer.h.0.attn.module._orig_mod.c_attn.lora_B.default.weight": "h.0.attn.c_attn.lora_B.default.weight",
    "h.0.attn.c_attn.weight": "h.0.attn.c_attn.weight",
    # what only looks like one
    "h.0.attn.my_module.weight": "h.0.attn.my_module.weight",
    "h.0.module": "h.0.module",
    "h.0.attn.model.weight": "h.0.attn.model.weight",
    "transformers.wte.weight": "transformers.wte.weight",
}


@pytest.mark.parametrize("key", WRITTEN)
def test_names_of_parameters(key):
    assert parameter_name(key) == WRITTEN[key]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_may_stand_anywhere(wrapper):
    parts = "transformer.h.0.attn.c_attn".split(".")
    for place in range(len(parts)):
        name = ".".join([*parts[:place], wrapper, wrapper, *parts[place:]])
        assert unwrapped(name) == "transformer.h.0.attn.c_attn"


def test_masks_are_told_from_biases():
    assert all(map(MASK.fullmatch, ("h.0.attn.bias", "h.11.attn.masked_bias")))
    assert not any(map(MASK.fullmatch, ("h.0.attn.c_attn.bias", "attn.bias", "h.0.mlp.bias")))
