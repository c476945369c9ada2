import numpy as np
import pytest

from npgpt import nn


class Pair(nn.Module):
    def __init__(self):
        self.note = "neither a parameter nor a module"
        self.first = nn.Linear(2, 3, np.float64)
        self.rest = [nn.LayerNorm(3, 1e-5, np.float64), nn.Embedding(4, 3, np.float64)]


NAMES = ["first.weight", "first.bias", "rest.0.weight", "rest.0.bias", "rest.1.weight"]


def test_parameters_have_the_dotted_names_of_their_place_in_order_of_assignment():
    pair = Pair()
    assert list(pair.parameters()) == NAMES
    assert pair.parameters()["rest.1.weight"] is pair.rest[1].weight


def test_modules_have_the_same_names():
    class Outer(nn.Module):
        def __init__(self):
            self.pair = Pair()

    assert [name for name, _ in Outer().named_modules()] == ["pair", "pair.first", "pair.rest.0", "pair.rest.1"]


def test_freeze_and_unfreeze_reach_every_parameter():
    pair = Pair()
    assert list(pair.trainable_parameters()) == NAMES
    pair.freeze()
    assert pair.trainable_parameters() == {}
    pair.first.bias.trainable = True
    assert pair.trainable_parameters() == {"first.bias": pair.first.bias}
    pair.unfreeze()
    assert list(pair.trainable_parameters()) == NAMES


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shapes_and_dtypes(dtype):
    x = nn.Tensor(np.ones((5, 2), dtype))
    linear, norm, table = nn.Linear(2, 3, dtype), nn.LayerNorm(2, 1e-5, dtype), nn.Embedding(4, 3, dtype)
    outputs = linear(x), norm(x), table(np.array([0, 3]))
    assert [y.shape for y in outputs] == [(5, 3), (5, 2), (2, 3)]
    assert {y.dtype for y in outputs} == {np.dtype(dtype)}


def test_a_linear_is_x_W_plus_b_with_W_in_by_out():
    linear = nn.Linear(2, 3, np.float64)
    linear.weight.data[...] = [[1, 2, 3], [10, 20, 30]]
    linear.bias.data[...] = [0.5, 0, 0]
    assert linear(nn.Tensor(np.array([[1.0, 1.0], [1.0, 0.0]]))).data.tolist() == [[11.5, 22, 33], [1.5, 2, 3]]
