"""Make the checkpoints in tests/goldens/nanogpt: files as nanoGPT and minGPT save them, and the logits they compute.

    python -m tests.goldens.make_nanogpt

from the root. The model is written here after their mathematics, with the layers and names that decide what is in a
file; weights are drawn by the rule in golden.py.
"""

import math
import pickle

import numpy as np
import torch
from torch import nn

from tests.goldens import golden

FOLDER = golden.FOLDER / "nanogpt"
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 12, "vocab_size": 29}
# name -> (program, whether there are biases, how torch.save writes)
CHECKPOINTS = {
    "ckpt": ("nanoGPT", True, {}),
    "ckpt-compiled-no-bias": ("nanoGPT", False, {"_use_new_zipfile_serialization": False}),
    "model": ("minGPT", True, {}),
}
ACTIVATIONS = {"nanoGPT": "gelu", "minGPT": "gelu_new"}
IDS = np.arange(12) * 5 % SIZES["vocab_size"]


class Norm(nn.Module):
    """A layer norm that can be without bias, which torch's could not when nanoGPT was written."""

    def __init__(self, width, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x):
        return nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    def __init__(self, sizes, bias):
        super().__init__()
        C, T = sizes["n_embd"], sizes["block_size"]
        self.c_attn, self.c_proj = nn.Linear(C, 3 * C, bias=bias), nn.Linear(C, C, bias=bias)
        self.register_buffer("bias", torch.ones(T, T).tril().view(1, 1, T, T))
        self.heads = sizes["n_head"]

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=-1))
        scores = q @ k.transpose(2, 3) / math.sqrt(C // self.heads)
        weights = scores.masked_fill(self.bias[..., :T, :T] == 0, -math.inf).softmax(-1)
        return self.c_proj((weights @ v).transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    def __init__(self, sizes, bias, activation):
        super().__init__()
        C = sizes["n_embd"]
        self.ln_1, self.attn, self.ln_2 = Norm(C, bias), Attention(sizes, bias), Norm(C, bias)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(C, 4 * C, bias=bias), "c_proj": nn.Linear(4 * C, C, bias=bias)})
        self.activation = activation

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp.c_proj(self.activation(self.mlp.c_fc(self.ln_2(x))))


class GPT(nn.Module):
    """A GPT of linear layers: program "nanoGPT" ties the head and has the erf form, "minGPT" neither."""

    def __init__(self, program, bias=True, sizes=SIZES):
        super().__init__()
        C, V = sizes["n_embd"], sizes["vocab_size"]
        activation = nn.GELU(approximate="none" if ACTIVATIONS[program] == "gelu" else "tanh")
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(V, C), "wpe": nn.Embedding(sizes["block_size"], C),
            "h": nn.ModuleList([Block(sizes, bias, activation) for _ in range(sizes["n_layer"])]),
            "ln_f": Norm(C, bias),
        })
        self.lm_head = nn.Linear(C, V, bias=False)
        if program == "nanoGPT":
            self.lm_head.weight = self.transformer.wte.weight
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(torch.tensor(golden.weight(name, tuple(parameter.shape), 2)))

    def forward(self, ids):
        x = self.transformer.wte(ids) + self.transformer.wpe(torch.arange(ids.shape[1]))
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


def logits(model, ids=IDS):
    """Return what the model computes of ids (T,), an array (T, V)."""
    with torch.no_grad():
        return model(torch.tensor(ids)[None])[0].numpy()


def checkpoint(program, model, bias=True, compiled=False, sizes=SIZES):
    """Return what the program gives to torch.save, after one step of its optimizer."""
    state = {f"_orig_mod.{key}" if compiled else key: tensor for key, tensor in model.state_dict().items()}
    if program == "minGPT":
        return state
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    model(torch.tensor(IDS)[None]).logsumexp(-1).mean().backward()
    optimizer.step()
    return {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "model_args": {**sizes, "bias": bias, "dropout": 0.25},
        "iter_num": 2000,
        "best_val_loss": torch.tensor(1.5),
        "config": {"out_dir": "out", "eval_interval": 2000, "eval_only": False, "learning_rate": 6e-4, "bias": bias},
    }


def save(path, program, model, bias=True, options=None, compiled=False):
    torch.save(checkpoint(program, model, bias, compiled), path, **(options or {}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    answers = {}
    for each, (program, bias, options) in CHECKPOINTS.items():
        model = GPT(program, bias)
        save(FOLDER / f"{each}.pt", program, model, bias, options, "compiled" in each)
        answers[each] = logits(model)
    np.savez_compressed(FOLDER / "answers.npz", ids=IDS, **answers)
    characters = sorted("\n !'abcdefghijklmnopqrstuvwxé"[: SIZES["vocab_size"]])
    ids = {text: i for i, text in enumerate(characters)}
    with open(FOLDER / "meta.pkl", "wb") as file:
        pickle.dump({"vocab_size": len(ids), "itos": {i: text for text, i in ids.items()}, "stoi": ids}, file)
