"""The other side of the comparison: random GPT-2s of transformers and PEFT, and the same weights in npgpt.

Weights pass between the two sides in memory, as dicts of arrays under the names of the released gpt2 file.

A comparison is relative to the largest entry of the reference array. Both sides round every sum of products, and the
rounding error of a sum scales with its terms, not with what is left after they cancel: an entry that happens to be
near zero has no correct digits on either side, so an error relative to each entry would measure nothing.
"""

import numpy as np
import peft
import torch
import transformers

import npgpt

torch.set_num_threads(2)
transformers.logging.set_verbosity_error()

BASE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 61, "n_positions": 24}
CONFIGS = {
    "gelu_new": {},
    "gelu-inner": {"activation_function": "gelu", "n_inner": 80, "n_layer": 1, "n_head": 4, "n_embd": 48},
    "relu-by-layer": {
        "activation_function": "relu", "scale_attn_by_inverse_layer_idx": True, "n_layer": 3, "n_head": 3, "n_embd": 36,
    },
    "silu-unscaled": {"activation_function": "silu", "scale_attn_weights": False, "n_head": 4, "n_embd": 20},
    "untied": {"tie_word_embeddings": False, "n_head": 8, "n_embd": 64, "vocab_size": 257, "layer_norm_epsilon": 1e-3},
    "deep": {"n_layer": 6, "n_inner": 40, "reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
}
# dtype here and there, and the error allowed between them. float32 is what runs: each side is within about 3e-6 of the
# truth there. float64 shows a formula that is wrong by less than float32's rounding.
DTYPES = {"float32": (np.float32, torch.float32, 1e-5), "float64": (np.float64, torch.float64, 1e-12)}


def torch_model(name="gelu_new", seed=0, dtype=torch.float32, **changes):
    """Return transformers' GPT2LMHeadModel of CONFIGS[name], every weight, bias and layer norm of order 0.2.

    GPT-2's own initialisation (0.02, biases 0, layer norms 1) hides errors: attention is then nearly uniform and the
    activation nearly linear.
    """
    fields = {**BASE, **CONFIGS[name], "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, **changes}
    if dtype == torch.float64:
        fields["reorder_and_upcast_attn"] = False  # it upcasts to float32 and refuses anything wider
    config = transformers.GPT2Config(**fields, bos_token_id=0, eos_token_id=0)
    config._attn_implementation = "eager"
    model = transformers.GPT2LMHeadModel(config).to(dtype).eval()
    draw = np.random.default_rng(seed)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            centre = 1.0 if ".ln_" in key and key.endswith("weight") else 0.0
            weight.copy_(torch.tensor(centre + 0.2 * draw.standard_normal(tuple(weight.shape))))
    return model


def with_peft(model, targets, r=4, alpha=None, seed=1, **fields):
    """Return `model` under a PEFT adapter with lora_A and lora_B random, in place of PEFT's lora_B = 0.

    With lora_B = 0 the gradient of lora_A is zero whatever the formula.
    """
    fields = {"fan_in_fan_out": True, "task_type": "CAUSAL_LM", **fields}
    config = peft.LoraConfig(r=r, lora_alpha=2 * r if alpha is None else alpha, target_modules=targets, **fields)
    model = peft.get_peft_model(model, config).eval()
    draw = np.random.default_rng(seed)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if ".lora_" in key:
                weight.copy_(torch.tensor(0.2 * draw.standard_normal(tuple(weight.shape))))
    return model


def released_name(key):
    """Return the name in the released file, or in npgpt for LoRA's, of a parameter of transformers or PEFT."""
    key = key.removeprefix("base_model.model.").removeprefix("transformer.").replace(".base_layer", "")
    return key.removesuffix(".default.weight")


def npgpt_model(model, dtype=np.float32):
    """Return the npgpt.GPT2 with the weights of a transformers or PEFT model; LoRA included, everything else alike."""
    arrays = {released_name(key): weight.detach().numpy() for key, weight in model.named_parameters()}
    ours = npgpt.GPT2(npgpt.GPT2Config.from_dict(model.config.to_dict()), seed=None, dtype=dtype)
    if hasattr(model, "peft_config"):
        theirs = model.peft_config["default"]
        targets = theirs.target_modules if isinstance(theirs.target_modules, str) else sorted(theirs.target_modules)
        npgpt.add_lora(ours, npgpt.LoraConfig(r=theirs.r, lora_alpha=theirs.lora_alpha, target_modules=targets), seed=0)
    parameters = ours.parameters()
    assert sorted(parameters) == sorted(arrays)
    for key, tensor in parameters.items():
        assert tensor.shape == arrays[key].shape, key
        tensor.data = arrays[key].astype(dtype)
    return ours


def texts(vocab_size, lengths, seed=2):
    """Return random id arrays of these lengths."""
    draw = np.random.default_rng(seed)
    return [draw.integers(vocab_size, size=length) for length in lengths]


def torch_ids(ids):
    """Return ids (T,) or (B, T) as a batch of torch's."""
    return torch.tensor(np.atleast_2d(ids))


def torch_loss(model, ids, labels=None, attention_mask=None):
    """Return transformers' loss of ids (T,) or (B, T); labels default to the ids, and -100 marks what has no loss."""
    labels = torch_ids(ids if labels is None else labels)
    attention_mask = None if attention_mask is None else torch_ids(attention_mask)
    output = model(torch_ids(ids), attention_mask=attention_mask, labels=labels)
    if output.logits.dtype == torch.float32:
        return output.loss
    # transformers rounds the logits to float32 before its loss, which would hide everything below 1e-7.
    return torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def torch_mean_loss(model, sequences):
    """Return the loss of sequences of unequal length: each alone through transformers, weighted by its targets."""
    targets = sum(len(ids) - 1 for ids in sequences)
    return sum(torch_loss(model, ids) * ((len(ids) - 1) / targets) for ids in sequences)


def torch_gradients(model, loss):
    """Return name -> gradient array for every parameter of `model` that the loss reached."""
    model.zero_grad()
    loss.backward()
    return {released_name(key): p.grad.numpy() for key, p in model.named_parameters() if p.grad is not None}


def npgpt_gradients(model, loss):
    """Return name -> gradient array for every parameter of `model` that the loss reached."""
    gradients = npgpt.backward(loss)
    named = {key: gradients.pop(tensor) for key, tensor in model.parameters().items() if tensor in gradients}
    assert not gradients, "a gradient of something that is no parameter"
    return named


def relative_error(ours, theirs):
    """Return max |ours - theirs| / max |theirs|, computed in float64."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 0, "a reference of zeros checks nothing"
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def assert_close(ours, theirs, bound, what=""):
    error = relative_error(ours, theirs)
    assert error <= bound, f"{what} differs by {error:.1e}, allowed {bound:.0e}"


def assert_all_close(ours, theirs, bound):
    """Compare two dicts of arrays: the same names, every array within `bound`."""
    assert sorted(ours) == sorted(theirs)
    for key in theirs:
        assert_close(ours[key], theirs[key], bound, key)
