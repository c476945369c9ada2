"""The training step of scripts/benchmark.py as other projects take it, on the same shapes: for its --peers.

GPT-2 124M with random weights, LoRA r = 8, alpha = 16, dropout 0.1 on c_attn and no other dropout; forward, backward,
clipping by norm and AdamW. Each function returns step(), which takes one step and returns when it is done.
"""

import importlib.util
import os

import numpy as np

PEERS = {"torch": "torch + PEFT", "torch-bf16": "torch + PEFT, bfloat16", "jax": "JAX, jit"}


def installed():
    """Return the names of those peers whose packages are installed."""
    needed = {"torch": "peft", "torch-bf16": "peft", "jax": "jax"}
    return [name for name in PEERS if importlib.util.find_spec(needed[name])]


def make_step(name, sequences, threads):
    """Return step() of the peer called `name` on `sequences`, which are padded to the longest."""
    width = max(map(len, sequences))
    ids, mask = np.zeros((len(sequences), width), np.int64), np.zeros((len(sequences), width), bool)
    for i, sequence in enumerate(sequences):
        ids[i, :len(sequence)], mask[i, :len(sequence)] = sequence, True
    if name == "jax":
        return jax_step(ids, mask)
    return torch_step(ids, mask, threads, bfloat16=name == "torch-bf16")


def torch_step(ids, mask, threads, bfloat16):
    """transformers and PEFT, all weights in float32 or in bfloat16."""
    import peft
    import torch
    import transformers

    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    config = transformers.GPT2Config(embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0)
    model = transformers.GPT2LMHeadModel(config).to(torch.bfloat16 if bfloat16 else torch.float32)
    adapter = peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.1, target_modules=["c_attn"], fan_in_fan_out=True)
    model = peft.get_peft_model(model, adapter).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4, weight_decay=0.01)
    ids, mask = torch.from_numpy(ids), torch.from_numpy(mask)
    labels = ids.masked_fill(~mask, -100)

    def step():
        model(input_ids=ids, attention_mask=None if mask.all() else mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def jax_step(ids, mask, L=12, H=12, C=768, V=50257, R=8):
    """The model in jax.numpy, compiled whole. The threads are XLA's own choice: it takes no number."""
    import jax
    import jax.numpy as jnp

    B, T = ids.shape
    draw = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(draw.standard_normal(shape, dtype=np.float32) * 0.02)

    def linear(n_in, n_out):
        return {"weight": normal(n_in, n_out), "bias": jnp.zeros(n_out)}

    def norm():
        return {"weight": jnp.ones(C), "bias": jnp.zeros(C)}

    def block():
        return {"ln_1": norm(), "c_attn": linear(C, 3 * C), "attn_proj": linear(C, C), "ln_2": norm(),
                "c_fc": linear(C, 4 * C), "mlp_proj": linear(4 * C, C)}

    frozen = {"wte": normal(V, C), "wpe": normal(1024, C), "ln_f": norm(), "h": [block() for _ in range(L)]}
    adapter = [{"A": normal(R, C), "B": jnp.zeros((3 * C, R))} for _ in range(L)]
    causal = jnp.tril(jnp.ones((T, T), bool)) & jnp.asarray(mask)[:, None, None, :]

    def layer_norm(p, x):
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * p["weight"] + p["bias"]

    def project(p, x):
        return x @ p["weight"] + p["bias"]

    def attention(p, lora, x, key):
        dropped = x * jax.random.bernoulli(key, 0.9, x.shape) / 0.9
        qkv = project(p["c_attn"], x) + 2.0 * (dropped @ lora["A"].T) @ lora["B"].T
        q, k, v = jnp.moveaxis(qkv.reshape(B, T, 3, H, C // H), 2, 0)       # (B, T, 3C) -> 3 x (B, T, H, D)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(C // H).astype(np.float32)
        P = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1)
        return project(p["attn_proj"], jnp.einsum("bhqk,bkhd->bqhd", P, v).reshape(B, T, C))

    def loss(adapter, frozen, ids, key):
        x = frozen["wte"][ids] + frozen["wpe"][:T]
        for p, lora, layer_key in zip(frozen["h"], adapter, jax.random.split(key, L), strict=True):
            x = x + attention(p, lora, layer_norm(p["ln_1"], x), layer_key)
            x = x + project(p["mlp_proj"], jax.nn.gelu(project(p["c_fc"], layer_norm(p["ln_2"], x))))
        hidden, targets = layer_norm(frozen["ln_f"], x[:, :-1]), ids[:, 1:]
        at_target = (hidden * frozen["wte"][targets]).sum(-1)  # differentiated without a scatter, which XLA is slow at
        losses = jax.nn.logsumexp(hidden @ frozen["wte"].T, axis=-1) - at_target
        return (losses * mask[:, 1:]).sum() / mask[:, 1:].sum()

    @jax.jit
    def update(adapter, m, v, t, frozen, ids, key):
        grads = jax.grad(loss)(adapter, frozen, ids, key)
        clip = jnp.minimum(1, 1 / (jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads))) + 1e-6))
        grads = jax.tree.map(lambda g: g * clip, grads)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
        step = jax.tree.map(lambda m, v: m / (1 - 0.9**t) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8), m, v)
        return jax.tree.map(lambda p, s: p * (1 - 3e-6) - 3e-4 * s, adapter, step), m, v

    zeros = jax.tree.map(jnp.zeros_like, adapter)
    state = {"adapter": adapter, "m": zeros, "v": zeros, "t": 0}

    def step():
        state["t"] += 1
        moved = update(state["adapter"], state["m"], state["v"], state["t"], frozen, ids, jax.random.key(state["t"]))
        state["adapter"], state["m"], state["v"] = jax.block_until_ready(moved)

    return step
