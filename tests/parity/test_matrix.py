"""Every LoRA feature against PEFT, in every direction. One case is one (feature, direction).

    read       PEFT writes the adapter, npgpt reads it: equal logits
    write      npgpt writes the adapter, PEFT reads it: equal logits
    merge      what PEFT wrote, merged by npgpt into plain weights: the logits of PEFT's model, unmerged
    gradients  the same adapter on both sides: equal loss, and equal gradients of everything that trains

Logits, losses and gradients agree within 1e-5 of their largest entry, in float32.
"""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import peft
import torch
from peft.optimizers import create_loraplus_optimizer

import npgpt
from npgpt.adapters.loraplus import loraplus

from .reference import (
    assert_all_close,
    assert_close,
    npgpt_gradients,
    npgpt_model,
    texts,
    torch_ids,
    torch_mean_loss,
    torch_model,
)

ALL = {"target_modules": "all-linear"}
SOME = {"target_modules": ["c_attn", "mlp.c_fc"]}
FEATURES = {
    "target list": SOME,
    "all-linear": ALL,
    "target regex": {"target_modules": r"transformer\.h\.[02]\.(attn\.c_attn|mlp\.c_proj)"},
    "exclude list": {**SOME, "exclude_modules": ["h.1.attn.c_attn"]},
    "exclude regex": {**ALL, "exclude_modules": r".*\.1\..*c_proj"},
    "layers_to_transform": {**SOME, "layers_to_transform": 1},
    "layers_pattern": {**SOME, "layers_to_transform": [0, 2], "layers_pattern": "h"},
    "rank_pattern": {**SOME, "rank_pattern": {r"h\.1\..*": 2, "mlp.c_fc": 6}},
    "alpha_pattern": {**SOME, "alpha_pattern": {"c_attn": 2, "h.0.mlp.c_fc": 40}},
    "rsLoRA": {**SOME, "use_rslora": True},
    "rsLoRA, patterns": {**SOME, "use_rslora": True, "rank_pattern": {"c_fc": 6}, "alpha_pattern": {"h.1.mlp.c_fc": 3}},
    "DoRA": {"target_modules": ["c_attn"], "use_dora": True},
    "DoRA, all-linear, rsLoRA": {**ALL, "use_dora": True, "use_rslora": True},
    "lora_bias": {**SOME, "lora_bias": True},
    "bias lora_only": {**SOME, "bias": "lora_only"},
    "bias all": {**SOME, "bias": "all"},
    "DoRA, bias all": {**SOME, "use_dora": True, "bias": "all"},
    "modules_to_save norm": {**SOME, "modules_to_save": ["ln_f", "ln_1"]},
    "modules_to_save wpe, wte": {**SOME, "modules_to_save": ["wpe", "wte"]},
    "modules_to_save head": {**SOME, "modules_to_save": ["lm_head"]},
    "modules_to_save mlp": {**SOME, "modules_to_save": ["h.1.mlp"]},
    "wte": {"target_modules": ["wte", "c_attn"]},
    "wte, wpe, DoRA": {"target_modules": ["wte", "wpe"], "use_dora": True},
    "tied head": {"target_modules": ["lm_head", "c_attn"]},
    "untied head": {"target_modules": ["lm_head", "c_attn"]},
    "untied head, DoRA": {"target_modules": ["lm_head"], "use_dora": True},
    "untied wte": {"target_modules": ["wte"]},
    "gaussian": {**SOME, "init_lora_weights": "gaussian"},
    "orthogonal": {**SOME, "init_lora_weights": "orthogonal"},
    "PiSSA": {**SOME, "init_lora_weights": "pissa"},
    "token rows": {**SOME, "trainable_token_indices": [7, 3, 60]},
    "token rows by name": {**SOME, "trainable_token_indices": {"wte": [5, 3], "wpe": [0, 2]}},
    "token rows of the head": {**SOME, "trainable_token_indices": {"lm_head": [5], "wte": [3]}},
    "untied, token rows": {**SOME, "trainable_token_indices": {"lm_head": [5, 9], "wte": [9, 7, 60]}},
    "resized": SOME,
    "resized, untied": SOME,
    "resized, token rows": {**SOME, "trainable_token_indices": [59, 60]},
    "resized, untied, token rows": {**SOME, "trainable_token_indices": [60]},
    "resized, modules_to_save wte": {**SOME, "modules_to_save": ["wte"]},
    "resized, wte": {"target_modules": ["wte", "c_attn"]},
    "resized, tied head": {"target_modules": ["lm_head", "c_attn"]},
    "resized, untied, head and wte": {"target_modules": ["lm_head", "wte"]},
    "PiSSA, rsLoRA": {**SOME, "init_lora_weights": "pissa", "use_rslora": True},
}
BOUND = 1e-5
pytestmark = [
    pytest.mark.filterwarnings("ignore:Adapter 'default':UserWarning"),  # PEFT takes lora_B's bias for a broken lora_B
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),  # for the head, and sets it back
    pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA with rank_pattern:UserWarning"),
]


@pytest.fixture(params=FEATURES)
def feature(request, monkeypatch):
    """For PiSSA, PEFT's SVD is done in float64. In float32, torch's leaves W - s B A wrong by 2e-6 (NumPy's by 4e-8,
    measured on these weights), which alone moves the logits by 1e-5."""
    if "PiSSA" in request.param:
        svd = torch.linalg.svd
        monkeypatch.setattr(torch.linalg, "svd", lambda weight, **options: [
            part.float() for part in svd(weight.double(), **options)])
    return request.param


def base(feature, seed=0):
    """transformers' model; in a resized one tokens 58 to 60 were added, and their rows are drawn with `seed`."""
    name, resized = "untied" if "untied" in feature else "gelu_new", "resized" in feature
    model = torch_model(name, n_layer=3, vocab_size=58 if resized else 61)
    if resized:
        torch.manual_seed(seed)
        model.resize_token_embeddings(61, mean_resizing=False)
    return model


def our_base(feature):
    """The same in npgpt, which has resized it in its own way."""
    return npgpt_model(base(feature)) if "resized" not in feature else resized(
        npgpt_model(torch_model("untied" if "untied" in feature else "gelu_new", n_layer=3, vocab_size=58)))


def resized(model):
    model.resize_token_embeddings(61)
    return model


def wrapped(feature):
    """PEFT's model with everything that trains moved away from where it starts."""
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "fan_in_fan_out": True, "task_type": "CAUSAL_LM"}
                             | FEATURES[feature])
    model = peft.get_peft_model(base(feature), config).eval()
    draw, size = np.random.default_rng(1), 0.05 if "PiSSA" in feature else 0.2  # its A and B are large already
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.tensor(size * draw.standard_normal(tuple(parameter.shape)), dtype=torch.float32)
    return model


def logits(model, ids):
    with torch.no_grad():
        return model(torch_ids(ids)).logits[0].numpy()


def our_name(key):
    """What npgpt calls a trained parameter of PEFT's model."""
    key = key.removeprefix("base_model.model.").removeprefix("transformer.").replace(".default", "")
    for segment in (".modules_to_save", ".base_layer"):
        key = key.replace(segment, "")
    key = key.replace(".token_adapter", "")
    if ".lora_" in key or "trainable_tokens_delta" in key:
        return key.replace(".lora_B.bias", ".lora_B_bias").removesuffix(".weight")
    module, _, tensor = key.rpartition(".")
    return f"{module}.trained_{tensor}"


def save(theirs, feature, folder):
    theirs.save_pretrained(folder, save_embedding_layers=True if "resized" in feature else "auto")


@pytest.fixture
def ids():
    return np.append(texts(61, [20])[0], [58, 59, 60, 7])  # what was added, and a row that trains, are among them


def test_read(feature, ids, tmp_path):
    theirs = wrapped(feature)
    save(theirs, feature, tmp_path)
    ours = npgpt.load_adapter(our_base(feature), tmp_path)
    assert_close(ours.logits(ids), logits(theirs, ids), BOUND, "logits")


def test_write(feature, ids, tmp_path):
    ours = our_base(feature)
    before = {name: tensor.data.tobytes() for name, tensor in ours.parameters().items()}
    npgpt.add_lora(ours, npgpt.LoraConfig(**{"r": 4, "lora_alpha": 8, "lora_dropout": 0.0} | FEATURES[feature]), seed=3)
    draw = np.random.default_rng(4)
    for tensor in ours.trainable_parameters().values():
        tensor.data += (0.2 * draw.standard_normal(tensor.shape)).astype(np.float32)
    expected = ours.logits(ids)
    assert np.abs(expected - our_base(feature).logits(ids)).max() > 0.01, "an adapter without effect"
    npgpt.save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(base(feature, seed=1), tmp_path).eval()
    assert_close(expected, logits(theirs, ids), BOUND, "logits")
    again = npgpt.load_adapter(our_base(feature), tmp_path)
    assert_close(again.logits(ids), expected, BOUND, "logits after npgpt's own round trip")
    after = ours.parameters()
    assert all(after[name].data.tobytes() == bits for name, bits in before.items()), "the base was written to"


def test_merge(feature, ids, tmp_path):
    theirs = wrapped(feature)
    save(theirs, feature, tmp_path)
    ours = npgpt.merge_lora(npgpt.load_adapter(our_base(feature), tmp_path))
    assert_close(ours.logits(ids), logits(theirs, ids), BOUND, "merged logits")
    plain = {"lm_head.weight"} if not ours.config.tie_word_embeddings else set()
    assert ours.parameters().keys() | plain == our_base(feature).parameters().keys() | plain


def test_gradients(feature, tmp_path):
    save(wrapped(feature), feature, tmp_path)
    theirs = peft.PeftModel.from_pretrained(base(feature), tmp_path, is_trainable=True).eval()
    ours = npgpt.load_adapter(our_base(feature), tmp_path)
    sequences = texts(61, [9, 2, 24, 9, 15]) if "token" not in feature and "resized" not in feature else [
        *texts(61, [9, 2, 24]), np.arange(50, 61), np.arange(3, 10)]
    loss, expected = ours.loss(npgpt.Batch.from_sequences(sequences)), torch_mean_loss(theirs, sequences)
    assert_close(loss.data, expected.detach(), BOUND, "loss")
    expected.backward()
    gradients = {our_name(key): parameter.grad.numpy() for key, parameter in theirs.named_parameters()
                 if parameter.grad is not None}
    assert_all_close(npgpt_gradients(ours, loss), gradients, BOUND)


# Several adapters


def several(base_model):
    """PEFT's model with adapters "default" and "other" of one rank, both with an effect."""
    configs = [peft.LoraConfig(r=4, lora_alpha=alpha, target_modules=["c_attn", "mlp.c_fc"], fan_in_fan_out=True,
                               task_type="CAUSAL_LM") for alpha in (8, 20)]
    model = peft.get_peft_model(base_model, configs[0])
    model.add_adapter("other", configs[1])
    draw = np.random.default_rng(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".lora_" in key:
                parameter.copy_(torch.tensor(0.2 * draw.standard_normal(tuple(parameter.shape)), dtype=torch.float32))
    return model.eval()


@pytest.fixture
def both(tmp_path):
    """(PEFT's model, npgpt's with the same two adapters, read from PEFT's files)."""
    theirs = several(base("gelu_new"))
    theirs.save_pretrained(tmp_path)
    ours = npgpt_model(base("gelu_new"))
    for name in ("default", "other"):
        npgpt.load_adapter(ours, tmp_path, name)
    return theirs, ours


def test_several_switched_and_disabled(both, ids):
    theirs, ours = both
    for name in ("default", "other"):
        theirs.set_adapter(name)
        npgpt.set_adapter(ours, name)
        assert_close(ours.logits(ids), logits(theirs, ids), BOUND, name)
    with theirs.disable_adapter(), npgpt.disable_adapter(ours):
        assert_close(ours.logits(ids), logits(theirs, ids), BOUND, "base")


def test_several_stacked(both, ids):
    theirs, ours = both
    theirs.base_model.set_adapter(["default", "other"])
    npgpt.set_adapter(ours, ["default", "other"])
    assert_close(ours.logits(ids), logits(theirs, ids), BOUND, "logits")


@pytest.mark.parametrize(("method", "density"), [("cat", 1), ("svd", 1), ("linear", 1), ("ties", 0.5), ("ties", 0.3)])
def test_several_combined(both, ids, method, density):
    theirs, ours = both
    names, weights = ["default", "other"], [0.7, -1.3]
    theirs.add_weighted_adapter(names, weights, "sum", method, density=density)
    theirs.set_adapter("sum")
    npgpt.add_weighted_adapter(ours, names, weights, "sum", method, density=density)
    assert_close(ours.logits(ids), logits(theirs, ids), BOUND, "logits")


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_several_combined_at_random(both, ids, method, monkeypatch):
    """With PEFT's draws put in the place of npgpt's, which come from another generator."""
    theirs, ours = both
    names, weights, draws, real = ["default", "other"], [0.7, 1.3], [], torch.bernoulli

    def bernoulli(probabilities):
        draws.append(real(probabilities))
        return draws[-1]

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    theirs.add_weighted_adapter(names, weights, "sum", method, density=0.6)
    theirs.set_adapter("sum")

    class Replay:
        def random(self, shape):
            return 1 - np.stack([draws.pop(0).numpy() for _ in range(shape[0])])  # below the density where it was kept

    npgpt.add_weighted_adapter(ours, names, weights, "sum", method, density=0.6, rng=Replay())
    assert not draws
    assert_close(ours.logits(ids), logits(theirs, ids), BOUND, "logits")


def test_several_in_one_batch(both):
    theirs, ours = both
    batch, names = np.stack(texts(61, [12, 12, 12, 12])), ["other", "__base__", "default", "other"]
    with torch.no_grad():
        expected = theirs(torch.tensor(batch), adapter_names=names).logits.numpy()
    with npgpt.mixed_batch(ours, [None if name == "__base__" else name for name in names]):
        assert_close(ours.logits(batch), expected, BOUND, "logits")


def test_loraplus_steps(both, tmp_path):
    """Five steps of AdamW with B's rate 16 times A's; PEFT decays nothing by default."""
    theirs, ours = both
    theirs.set_adapter("default")
    npgpt.set_adapter(ours, "default")
    optimizer = create_loraplus_optimizer(theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16)
    params = ours.trainable_parameters()
    opt = npgpt.AdamW(params, lr=1e-3, weight_decay=0.0, ratios=loraplus(params, 16))
    sequences = texts(61, [9, 24, 15])
    for _ in range(5):
        optimizer.zero_grad()
        torch_mean_loss(theirs, sequences).backward()
        optimizer.step()
        npgpt.train_step(ours, npgpt.Batch.from_sequences(sequences), opt, max_grad_norm=None)
    expected = {our_name(key): parameter.detach().numpy() for key, parameter in theirs.named_parameters()
                if parameter.requires_grad}
    assert_all_close({name: tensor.data for name, tensor in params.items()}, expected, 1e-3)


# Where PEFT 0.21 is wrong (measured there), and npgpt is right or refuses


def test_trap_olora(tmp_path, ids):
    """PEFT forgets that GPT-2's weights are stored transposed: its model cannot run, and saves a file all the same."""
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn"], "init_lora_weights": "olora"}
    theirs = peft.get_peft_model(base("gelu_new"), peft.LoraConfig(**config, fan_in_fan_out=True))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        logits(theirs, ids)
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(npgpt.NpgptError, match="init_lora_weights = 'olora' rewrote the base"):
        npgpt.load_adapter(npgpt_model(base("gelu_new")), tmp_path / "theirs")
    ours = npgpt.add_lora(npgpt_model(base("gelu_new")), npgpt.LoraConfig(**config, lora_dropout=0.0))
    assert_close(ours.logits(ids), logits(base("gelu_new"), ids), BOUND, "logits at the start")
    npgpt.save_adapter(ours, tmp_path / "ours")  # as plain LoRA, which PEFT runs
    theirs = peft.PeftModel.from_pretrained(base("gelu_new"), tmp_path / "ours").eval()
    assert_close(ours.logits(ids), logits(theirs, ids), BOUND, "logits")


@pytest.mark.parametrize("target", ["wte", "lm_head"])
def test_trap_merging_into_tied_tables(target, tmp_path, ids):
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=[target], task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(base("gelu_new"), config).eval()
    draw = np.random.default_rng(1)
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if ".lora_" in key:
                parameter.copy_(torch.tensor(0.5 * draw.standard_normal(tuple(parameter.shape)), dtype=torch.float32))
    theirs.save_pretrained(tmp_path)
    expected = logits(theirs, ids)
    ours = npgpt.merge_lora(npgpt.load_adapter(npgpt_model(base("gelu_new")), tmp_path))
    assert_close(ours.logits(ids), expected, BOUND, "merged logits")
    assert ours.config.tie_word_embeddings is False
    assert np.abs(logits(theirs.merge_and_unload(), ids) - expected).max() > 1, "PEFT has mended it: say so above"


def test_trap_pissa_niter(tmp_path, ids):
    """Its SVD is random: reloaded under another seed, PEFT's model is another one."""
    torch.manual_seed(0)
    theirs = with_peft_init("pissa_niter_1")
    theirs.save_pretrained(tmp_path)
    torch.manual_seed(1)
    again = peft.PeftModel.from_pretrained(base("gelu_new"), tmp_path).eval()
    assert np.abs(logits(again, ids) - logits(theirs, ids)).max() > 1e-3, "PEFT has mended it: say so above"
    with pytest.raises(npgpt.NpgptError, match="init_lora_weights = 'pissa_niter_1' rewrote the base"):
        npgpt.load_adapter(npgpt_model(base("gelu_new")), tmp_path)


def with_peft_init(method):
    return peft.get_peft_model(base("gelu_new"), peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=method)).eval()


def test_trap_alpha_pattern(tmp_path, ids):
    """Written sorted, PEFT's patterns change places: what was trained with alpha 64 comes back with 1."""
    fields = {"target_modules": ["mlp.c_fc"], "alpha_pattern": {"h.1.mlp.c_fc": 64, "c_fc": 1}}
    theirs = peft.get_peft_model(base("gelu_new"), peft.LoraConfig(r=4, **fields, fan_in_fan_out=True)).eval()
    draw = np.random.default_rng(1)
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if ".lora_" in key:
                parameter.copy_(torch.tensor(0.1 * draw.standard_normal(tuple(parameter.shape)), dtype=torch.float32))
    theirs.save_pretrained(tmp_path / "theirs")
    again = peft.PeftModel.from_pretrained(base("gelu_new"), tmp_path / "theirs").eval()
    assert np.abs(logits(again, ids) - logits(theirs, ids)).max() > 0.1, "PEFT has mended it: say so above"
    with pytest.raises(npgpt.NpgptError, match=r"alpha_pattern gives .* the values 1, 64"):
        npgpt.load_adapter(npgpt_model(base("gelu_new")), tmp_path / "theirs")
    ours = npgpt.add_lora(npgpt_model(base("gelu_new")), npgpt.LoraConfig(r=4, lora_dropout=0.0, **fields))
    trained = {our_name(key): parameter.detach() for key, parameter in theirs.named_parameters() if ".lora_" in key}
    for name, tensor in ours.trainable_parameters().items():
        tensor.data = trained[name].numpy().copy()
    npgpt.save_adapter(ours, tmp_path / "ours")
    for side in (ours, npgpt.load_adapter(npgpt_model(base("gelu_new")), tmp_path / "ours")):
        assert_close(side.logits(ids), logits(theirs, ids), BOUND, "logits")
    again = peft.PeftModel.from_pretrained(base("gelu_new"), tmp_path / "ours").eval()
    assert_close(logits(again, ids), logits(theirs, ids), BOUND, "logits in PEFT, from npgpt's file")


def test_trap_unmatched_targets():
    """PEFT takes a name that means nothing, as long as another does."""
    peft.get_peft_model(base("gelu_new"), peft.LoraConfig(target_modules=["c_attn", "v_proj"], fan_in_fan_out=True))
    with pytest.raises(npgpt.NpgptError, match="'v_proj' matches no module"):
        npgpt.add_lora(npgpt_model(base("gelu_new")), npgpt.LoraConfig(target_modules=["c_attn", "v_proj"]))


def test_trap_saved_order_of_targets(tmp_path):
    """PEFT writes a set as it comes, in another order from run to run; npgpt sorts."""
    model = npgpt.add_lora(npgpt_model(base("gelu_new")), npgpt.LoraConfig(target_modules=["mlp.c_fc", "c_attn"]))
    npgpt.save_adapter(model, tmp_path)
    written = (tmp_path / "adapter_config.json").read_text()
    assert '"target_modules": [\n    "c_attn",\n    "mlp.c_fc"\n  ]' in written


def test_trap_half_precision_base(tmp_path, ids):
    """Of a base in half precision PEFT's adapter is in float32, and half of its own runs here too."""
    theirs = peft.get_peft_model(base("gelu_new").half(), peft.LoraConfig(
        r=4, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)).half()
    theirs.save_pretrained(tmp_path)
    ours = npgpt.load_adapter(npgpt_model(base("gelu_new")), tmp_path)
    assert {tensor.dtype for tensor in ours.parameters().values()} == {np.dtype(np.float32)}
    whole = peft.PeftModel.from_pretrained(base("gelu_new"), tmp_path).eval()
    assert_close(ours.logits(ids), logits(whole, ids), BOUND, "logits")
