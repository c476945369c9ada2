"""Make the files in tests/goldens/mlx with MLX (pip install 'mlx[cpu]' mlx-lm): adapters, a whole model, their logits.

    python -m tests.goldens.make_mlx

from the root. The base is that of the adapters of PEFT beside them, which tests/goldens/test_adapter_goldens.py makes.
"""

import json

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import gpt2
from mlx_lm.tuner.utils import linear_to_lora_layers

from tests.goldens import golden
from tests.goldens.test_adapter_goldens import base

FOLDER = golden.FOLDER / "mlx"
PARAMETERS = {"rank": 2, "scale": 10.0, "dropout": 0.25, "keys": ["attn.c_attn", "mlp.c_proj"]}
IDS = np.arange(20) * 7 % 53


def model():
    """Return npgpt's base as MLX has it: the weights of linear layers (out, in)."""
    ours = base()
    c = ours.config
    theirs = gpt2.Model(gpt2.ModelArgs("gpt2", c.n_positions, c.n_embd, c.n_head, c.n_layer, c.n_positions,
                                       c.layer_norm_epsilon, c.vocab_size))
    weights = {name: mx.array(tensor.data) for name, tensor in ours.parameters().items()}
    theirs.load_weights(list(theirs.sanitize(weights).items()))
    theirs.eval()
    return theirs


def logits(theirs):
    return np.array(theirs(mx.array(IDS)[None])[0])


if __name__ == "__main__":
    answers = {}
    for kind, layers in (("lora", 2), ("dora", 1)):
        theirs = model()
        theirs.freeze()
        linear_to_lora_layers(theirs, layers, PARAMETERS, use_dora=kind == "dora")
        theirs.eval()
        trained = dict(tree_flatten(theirs.trainable_parameters()))
        for name, array in trained.items():
            centre = array if name.endswith(".m") else mx.zeros_like(array)
            trained[name] = centre + mx.array(golden.weight(name, array.shape, 3).astype(np.float32))
        theirs.load_weights(list(trained.items()), strict=False)
        (FOLDER / kind).mkdir(parents=True, exist_ok=True)
        mx.save_safetensors(str(FOLDER / kind / "adapters.safetensors"), trained)
        fields = {"fine_tune_type": kind, "num_layers": layers, "lora_parameters": PARAMETERS, "model": "gpt2",
                  "iters": 9}
        (FOLDER / kind / "adapter_config.json").write_text(json.dumps(fields, indent=4) + "\n")
        answers[kind] = logits(theirs)
    theirs = model()
    mx.save_safetensors(str(FOLDER / "model.safetensors"), dict(tree_flatten(theirs.parameters())), {"format": "mlx"})
    np.savez_compressed(FOLDER / "answers.npz", ids=IDS, model=logits(theirs), **answers)
