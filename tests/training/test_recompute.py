import numpy as np
import pytest

from npgpt import GPT2, Batch, GPT2Config, LoraConfig, add_lora, backward
from npgpt.checking.gradcases import randomise, small_batch, small_model
from npgpt.training.recompute import set_gradient_checkpointing


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("lora", [False, True])
def test_computing_blocks_again_changes_no_bit(lora, dropout):
    def results(checkpointing):
        model = small_model()
        model.set_dropout(dropout)
        if lora:
            add_lora(model, LoraConfig(r=2, lora_dropout=dropout, target_modules=["mlp.c_fc"]))
            randomise(model.trainable_parameters(), seed=1)
        set_gradient_checkpointing(model, checkpointing)
        loss = model.loss(small_batch(), np.random.Generator(np.random.Philox(3)))
        grads = backward(loss)
        return loss.data, {name: grads[tensor] for name, tensor in model.trainable_parameters().items()}

    (loss, grads), (expected_loss, expected) = results(True), results(False)
    assert loss == expected_loss
    assert grads.keys() == expected.keys()
    for name, gradient in grads.items():
        np.testing.assert_array_equal(gradient, expected[name], name)


def test_draws_after_a_block_is_computed_again_go_on_as_before():
    """The block's own draws come back for the second run, and whoever holds the generator notices nothing."""
    rng = np.random.Generator(np.random.Philox(3))
    model = small_model(resid_pdrop=0.3)
    set_gradient_checkpointing(model, True)
    loss = model.loss(small_batch(), rng)
    state = rng.bit_generator.state["state"]["counter"].tolist()
    backward(loss)
    assert rng.bit_generator.state["state"]["counter"].tolist() == state


def test_with_checkpointing_only_the_input_of_each_block_is_kept(memory):
    def held(checkpointing):
        model = GPT2(GPT2Config(n_layer=4, n_head=2, n_embd=16, vocab_size=13, n_positions=64), dtype=np.float32)
        set_gradient_checkpointing(model, checkpointing)
        return memory(lambda: model.loss(Batch.from_sequences([np.arange(64) % 13] * 16)))[1]

    activation = 1024 * 16 * 4  # bytes of one (N, C)
    assert held(True) < 10 * activation                     # an input a block, ln_f, the head's
    assert held(False) > 4 * 10 * activation
