"""Make the adapters in tests/goldens/adapters with PEFT: its two files, and the logits it computes. From the root:

    python -m tests.goldens.make_adapters

The base is not stored: its weights are drawn by the rule in golden.py, and so are those of what trains, so that the
same versions give the same bytes.
"""

import numpy as np
import peft
import torch

from tests.goldens import golden
from tests.parity.reference import released_name, texts, torch_ids, torch_model

FOLDER = golden.FOLDER / "adapters"
BASE = {"n_embd": 16, "vocab_size": 53}
SOME = {"target_modules": ["c_attn", "mlp.c_fc"]}
ADAPTERS = {
    "rslora-patterns": {**SOME, "use_rslora": True, "rank_pattern": {"c_fc": 5}, "alpha_pattern": {r"h\.1\..*": 3}},
    "dora": {**SOME, "use_dora": True},
    "lora-bias": {**SOME, "lora_bias": True},
    "bias-all": {**SOME, "bias": "all"},
    "modules-to-save": {**SOME, "modules_to_save": ["ln_f", "wpe"]},
    "one-layer-excluded": {**SOME, "layers_to_transform": [1], "exclude_modules": ["mlp.c_fc"]},
    "wte": {"target_modules": ["wte", "attn.c_proj"]},
    "lm_head": {"target_modules": ["lm_head", "attn.c_proj"]},
    "token-rows": {**SOME, "trainable_token_indices": [7, 52, 3]},
    "added-tokens": SOME,
    "added-token-rows": {**SOME, "trainable_token_indices": [50, 51]},
    "pissa": {**SOME, "init_lora_weights": "pissa"},
}


def base():
    model = torch_model("gelu_new", **BASE)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.tensor(golden.weight(released_name(key), tuple(parameter.shape), 0)))
    return model


def make(name):
    """Return PEFT's model under the adapter `name`, and ids with its logits."""
    torch.set_num_threads(1)
    config = peft.LoraConfig(r=2, lora_alpha=4, fan_in_fan_out=True, task_type="CAUSAL_LM", **ADAPTERS[name])
    model = peft.get_peft_model(base(), config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if ".lora_" in key and "magnitude" not in key and name != "pissa":  # what PEFT draws at random
                parameter.zero_()
            parameter += torch.tensor(golden.weight(key, tuple(parameter.shape), 1), dtype=torch.float32)
        (ids,) = texts(BASE["vocab_size"], [20])
        return model, ids, model(torch_ids(ids)).logits[0].numpy()


def save(model, name, folder):
    """Added tokens are what "auto" would find out from the base's folder, of which there is none here."""
    model.save_pretrained(folder, save_embedding_layers=True if "added" in name else "auto")


if __name__ == "__main__":
    for each in ADAPTERS:
        adapted, token_ids, expected = make(each)
        save(adapted, each, FOLDER / each)
        (FOLDER / each / "README.md").unlink()
        np.savez_compressed(FOLDER / each / "answer.npz", ids=token_ids, logits=expected)
