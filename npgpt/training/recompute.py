"""Gradient checkpointing: keep only the input of each block, and run the block again in the backward pass."""

from npgpt.autograd import Tensor, backward, needs_grad, no_grad, record


def set_gradient_checkpointing(model, on):
    """Let `model` run its blocks with `recompute`, or in the plain way. In place."""
    model.run_block = recompute if on else type(model).run_block


def has_gradient_checkpointing(model):
    """Tell whether `model` runs its blocks with `recompute`."""
    return model.run_block is recompute


def recompute(module, x, attend, rng):
    """module(x, attend, rng), keeping nothing but x: gradient checkpointing.

    Shapes    x (N, C) -> y (N, C)
    Forward   y = module(x), with nothing recorded.
    Backward  given dy. Run the module once more, recorded this time, and send dy through: what arrives at x and at the
              module's parameters are their gradients. The generator is put back to where it stood, so that the same
              elements drop out.
    Saves     x. The price is a second forward pass, about a third of a step.
    Source    Chen et al. 2016, "Training deep nets with sublinear memory cost".
    """
    parameters = list(module.trainable_parameters().values())
    (need_x,) = needs_grad(x)
    data, before = x.data, rng and rng.bit_generator.state
    with no_grad():
        y = module(x, attend, rng).data

    def rule(dy):
        again = Tensor(data, trainable=need_x)
        if rng is not None:
            after, rng.bit_generator.state = rng.bit_generator.state, before
        gradients = backward(module(again, attend, rng), dy)
        if rng is not None:
            rng.bit_generator.state = after
        return [gradients.get(tensor) for tensor in (again, *parameters)]

    return record("recompute", y, (x, *parameters), rule)
