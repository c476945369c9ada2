"""npgpt against golden files that torch, transformers and PEFT made; none of them is needed here. See tests/goldens.

Everything is compared relative to the largest entry of the reference array, as in tests/parity: the rounding error of a
sum scales with its terms, so an entry near zero, where terms cancel, has no correct digits on either side.
"""

import copy

import numpy as np
import pytest

import npgpt
from npgpt.optim import schedule
from tests.goldens import golden

# The error allowed of one pass forward and backward; and, in float64, of the losses, norms and weights of 50 steps.
#
# One pass. A correct formula differs only by rounding: measured, up to 2e-14 in float64 and 1.1e-6 in float32. The
# bounds, those of tests/parity, leave room for processors and libraries that add in another order. Wrong signs, factors
# and terms, tried on purpose, exceed both; a wrong digit in a constant (0.044716 for gelu_new's 0.044715, clipping
# without its 1e-6) only the float64 one.
#
# Fifty steps. Each stands on the one before, and Adam divides a gradient by its own size, so errors grow: measured, to
# 4e-14. In float32 they have no bound: a unit of relu so near 0 that rounding decides whether it is on changes the
# gradient by whole digits, and in 50 steps of some 5,000 units each, one is met now and then.
BOUNDS = {"float64": 1e-12, "float32": 1e-5}
FIFTY = 1e-11


@pytest.fixture(params=golden.NAMES)
def case(request):
    """(question, answer) of one golden."""
    return golden.read(request.param)


@pytest.fixture(params=BOUNDS)
def precision(request):
    """(dtype, and its bound)."""
    return np.dtype(request.param), BOUNDS[request.param]


def build(question, dtype):
    """Return the npgpt.GPT2 that a golden asks about, with its adapter, its weights and what it trains."""
    model = npgpt.GPT2(npgpt.GPT2Config.from_dict(question["config"]), seed=None, dtype=dtype)
    if question["lora"]:
        npgpt.add_lora(model, npgpt.LoraConfig(**question["lora"]), seed=0)
    for name, tensor in model.parameters().items():
        tensor.data = golden.weight(name, tensor.shape, question["seed"]).astype(dtype)
    return model


def batch_of(sequences):
    return npgpt.Batch.from_sequences([np.array(ids) for ids in sequences])


def logits_of(model, sequences):
    return np.concatenate([model.logits(np.array(ids)) for ids in sequences])


def test_the_goldens_differ_in_all_that_changes_the_mathematics():
    questions = [golden.read(name)[0] for name in golden.NAMES]
    configs = [question["config"] for question in questions]
    assert {config["activation_function"] for config in configs} == {"gelu_new", "gelu", "relu", "silu"}
    for field in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings"):
        assert {config[field] for config in configs} == {True, False}, field
    for field in ("n_head", "n_embd", "n_layer", "n_inner", "vocab_size", "layer_norm_epsilon"):
        assert len({config[field] for config in configs}) > 1, field
    adapters = [question["lora"] for question in questions if question["lora"]]
    assert {(str(lora["target_modules"]), lora["r"]) for lora in adapters} == {
        (targets, r) for targets in ("['c_attn']", "all-linear") for r in (1, 16)
    }
    assert {question["training"]["schedule"] for question in questions} == {"constant", "linear", "cosine"}
    assert {question["training"]["steps"] for question in questions} == {50}


def test_the_weights_are_those_the_goldens_were_made_with(case):
    """Where this fails, the rule that draws them does, and nothing else is worth reading."""
    question, _ = case
    weights = {name: tensor.data for name, tensor in build(question, np.float64).parameters().items()}
    assert golden.digest(weights) == question["weights_sha256"]
    for name, array in weights.items():
        assert (array.astype(np.float32) == array).all(), name


def test_logits(case, precision, assert_close):
    (question, answer), (dtype, bound) = case, precision
    model = build(question, dtype)
    logits = logits_of(model, question["sequences"])
    assert logits.dtype == dtype
    assert_close(logits, answer["logits"], bound, "logits")
    if question["lora"]:  # merging is another order of the same sums
        merged = logits_of(npgpt.merge_lora(model), question["sequences"])
        assert_close(merged, answer["logits"], bound, "merged logits")


def test_hidden_states_of_a_ragged_batch(case, precision, assert_close):
    """What enters each block, and what leaves the last layer norm: the states that transformers lists."""
    (question, answer), (dtype, bound) = case, precision
    model = copy.copy(build(question, dtype))
    states = []

    def watch_input(block):
        def run(x, *others):
            states.append(x.data)
            return block(x, *others)

        return run

    def watch_output(norm):
        def run(x):
            y = norm(x)
            states.append(y.data)
            return y

        return run

    model.h, model.ln_f = [watch_input(block) for block in model.h], watch_output(model.ln_f)
    model.loss(batch_of(question["sequences"]))
    assert len(states) == len(answer["hidden"]) == question["config"]["n_layer"] + 1
    for i, (state, expected) in enumerate(zip(states, answer["hidden"], strict=True)):
        assert_close(state, expected, bound, f"hidden states {i}")


def test_loss_and_every_gradient(case, precision, assert_close):
    (question, answer), (dtype, bound) = case, precision
    model = build(question, dtype)
    loss = model.loss(batch_of(question["sequences"]))
    assert_close(loss.data, answer["loss"], bound, "loss")
    gradients = npgpt.backward(loss)
    expected = golden.part(answer, "gradients")
    trainable = model.trainable_parameters()
    assert trainable.keys() == expected.keys()
    assert gradients.keys() == set(trainable.values())
    for name, tensor in trainable.items():
        assert_close(gradients[tensor], expected[name], bound, f"gradients of {name}")


def trained(question, model, steps):
    """Train as the golden says: yield (optimizer, StepResult) after each step. AdamW, clipping of some of the steps,
    and a schedule; every other batch is worked through in two pieces."""
    training, batches = question["training"], [batch_of(sequences) for sequences in question["batches"]]
    optimizer = npgpt.AdamW(
        model.trainable_parameters(), training["lr"], training["betas"], training["eps"], training["weight_decay"]
    )
    for step in range(steps):
        factor = schedule(training["schedule"], step, training["steps"], training["warmup_steps"])
        optimizer.lr = training["lr"] * factor
        batch, pieces = batches[step % len(batches)], 1 + step % 2
        yield optimizer, npgpt.train_step(model, batch, optimizer, training["max_grad_norm"], micro_batches=pieces)


def test_fifty_steps(case, assert_close):
    """One gradient is zero in truth and rounding in practice, that of the key bias: a constant added to all keys of a
    row changes no softmax. Adam divides that rounding by its own size wherever it is not small beside eps, so each side
    takes steps of its own there, and nothing is to be compared. Nothing else is disturbed, for the same reason: the
    model does not depend on that bias.
    """
    question, answer = case
    model = build(question, np.float64)
    before = {name: tensor.data.copy() for name, tensor in model.parameters().items()}
    done = []
    for optimizer, result in trained(question, model, question["training"]["steps"]):
        assert optimizer.lr == pytest.approx(answer["learning_rates"][len(done)], rel=1e-12, abs=1e-15)
        done.append(result)
    assert_close([step.loss for step in done], answer["losses"], FIFTY, "losses")
    assert_close([step.grad_norm for step in done], answer["grad_norms"], FIFTY, "norms")
    expected = golden.part(answer, "trained")
    for name, tensor in model.parameters().items():
        if tensor.trainable:
            ours, theirs = without_key_bias(name, tensor.data), without_key_bias(name, expected.pop(name))
            assert_close(ours, theirs, FIFTY, name)
        else:
            assert (tensor.data == before[name]).all(), name
    assert not expected


def test_steps_in_float32(case, room, assert_close):
    """Five, each batch once, beside the same steps in float64, which `test_fifty_steps` holds to the golden and which
    say how far a rounding of 1e-5 in the gradients, the bound of one pass, can lead."""
    question, answer = case
    off, eps = BOUNDS["float32"], np.finfo(np.float32).eps
    models = {dtype: build(question, dtype) for dtype in (np.float32, np.float64)}
    single, double = (model.trainable_parameters() for model in models.values())
    allowed, done, nearest = dict.fromkeys(double, 0.0), [], watch_relu(models[np.float64])
    for (_, ours), (exact, _) in zip(*(trained(question, model, 5) for model in models.values()), strict=True):
        done.append(ours)
        allowed = {name: allowed[name] + more for name, more in room(exact, off, eps).items()}
    assert min(nearest, default=1) > 1e-5  # no unit of relu is on in one precision and off in the other
    assert_close([step.loss for step in done], answer["losses"][:5], off, "losses")
    assert_close([step.grad_norm for step in done], answer["grad_norms"][:5], off, "norms")
    for name, tensor in single.items():
        assert tensor.dtype == np.float32
        assert (np.abs(tensor.data - double[name].data) <= allowed[name]).all(), name


def watch_relu(model):
    """The list to which each input nearest 0 of the model's relus is added."""
    nearest = []
    for block in model.h:
        if block.mlp.act is npgpt.ops.relu:
            block.mlp.act = lambda x: nearest.append(np.abs(x.data).min()) or npgpt.ops.relu(x)
    return nearest


def without_key_bias(name, array):
    """The middle third of c_attn's bias is added to the keys."""
    return np.delete(array, range(len(array) // 3, 2 * len(array) // 3)) if name.endswith("c_attn.bias") else array
