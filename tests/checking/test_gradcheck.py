"""The gradient check itself: it must pass right gradients, and fail and name wrong ones."""

import doctest
import sys

import numpy as np
import pytest

from npgpt import Tensor, gradcheck, ops
from npgpt.autograd import needs_grad, record
from npgpt.checking import gradcases
from npgpt.checking.gradcheck import check_parameters
from npgpt.commands import gradcheck as command
from npgpt.runtime.errors import ConfigError

X = np.array([[0.5, -1.0, 2.0], [0.3, 1.5, -0.7]])


def cube(x, slope):
    """Return x^3 with the gradient dy * slope(x); slope = 3 x^2 is right."""
    return record("cube", x.data * x.data * x.data, (x,), lambda dy: (dy * slope(x.data),))


def softmax(x, shift=0.0):
    """Return the softmax of each row; `shift` adds an error along the rows' probabilities to its gradient."""
    P = np.exp(x.data) / np.exp(x.data).sum(axis=1, keepdims=True)
    return record("softmax", P, (x,), lambda dy: (P * (dy - (1 - shift) * (dy * P).sum(axis=1, keepdims=True)),))


def test_the_example_in_the_docstring():
    module = sys.modules["npgpt.checking.gradcheck"]  # the function of the same name hides it
    failed, attempted = doctest.testmod(module)
    assert failed == 0
    assert attempted > 0


def test_right_gradients_pass():
    report = gradcheck(lambda x: cube(x, lambda x: 3 * x * x), [X])
    assert report.passed
    assert 0 < report.worst < 1e-9
    assert gradcheck(softmax, [X]).passed


@pytest.mark.parametrize("factor, ratio", [(2, "2"), (0.5, "0.5"), (-1, "-1"), (1 / 6, "0.166667"), (1 + 1e-6, "1")])
def test_a_wrong_factor_is_named(factor, ratio):
    report = gradcheck(lambda x: cube(x, lambda x: factor * 3 * x * x), [X])
    assert not report.passed
    assert report.worst > 1e-7
    assert report.rows[0].verdict == f"FAILED along its gradient: analytic / numeric = {ratio}"


@pytest.mark.parametrize("size", [1e-9, 1e9])
def test_errors_are_relative_to_the_gradient(size):
    for factor, passed in ((1, True), (1 + 1e-6, False)):
        report = gradcheck(lambda x, factor=factor: ops.mul(cube(x, lambda x: factor * 3 * x * x),
                                                            Tensor(np.array(size))), [X])
        assert report.passed == passed


def test_a_wrong_direction_is_found():
    """The gradient has the right length but a wrong direction."""
    report = gradcheck(lambda x: cube(x, lambda x: (3 * x * x)[:, ::-1]), [X])
    assert not report.passed


def test_a_gradient_with_one_wrong_element_of_many_is_found():
    def slope(x):
        dx = 3 * x * x
        dx[17, 3] *= 1.01
        return dx

    assert not gradcheck(lambda x: cube(x, slope), [np.random.default_rng(0).standard_normal((40, 50))]).passed


def test_the_sum_of_a_row_of_a_softmax_is_not_all_that_is_looked_at():
    """With a cotangent of ones the right gradient is 0, and the mistake would not show."""
    assert not gradcheck(lambda x: softmax(x, shift=1), [X]).passed


def test_a_vanishing_gradient_fails_as_vacuous():
    report = gradcheck(lambda x: ops.sum(softmax(x), axis=1), [X])
    assert not report.passed
    assert report.worst == np.inf
    assert "vanishes" in report.rows[0].verdict
    assert not gradcheck(ops.relu, [-np.abs(X)]).passed


def test_a_missing_gradient_fails():
    for lost in (lambda x, y: ops.exp(x), lambda x, y: Tensor(x.data * y.data)):
        report = gradcheck(lost, [X, X])
        assert not report.passed
        assert report.rows[1].argument == "y"
        assert "no gradient" in report.rows[1].verdict


def test_a_gradient_that_is_not_finite_fails():
    report = gradcheck(lambda x: cube(x, lambda x: x * np.nan), [X])
    assert "not finite" in report.rows[0].verdict
    with np.errstate(invalid="ignore"):
        assert not gradcheck(lambda x: record("root", np.sqrt(x.data), (x,), lambda dy: (dy,)), [X]).passed


def test_each_argument_has_a_row_and_the_table_shows_them():
    report = gradcheck(ops.linear, [np.ones((2, 3)), X.T, X[0, :2]])
    assert [row.argument for row in report.rows] == ["x", "weight", "bias"]
    lines = str(report).splitlines()
    assert len(lines) == 4
    assert lines[0].split() == ["argument", "analytic", "numeric", "relative", "error", "verdict"]
    assert all(line.endswith("passed") for line in lines[1:])
    assert [row.argument for row in gradcheck(lambda *xs: ops.add(*xs), [X, X]).rows] == ["input 0", "input 1"]


def test_inputs_are_converted_and_left_as_they_were():
    x = Tensor(X.astype(np.float32))
    kept = x.data.copy()
    assert gradcheck(ops.mul, [x, [[1, 2, 3], [4, 5, 6]]]).passed
    assert x.dtype == np.float32
    assert not x.trainable
    assert np.array_equal(x.data, kept)


def test_the_path_that_records_nothing_must_agree_with_the_recorded_one():
    """Training and evaluation differ, for example because a generator outside f gives each run its own draws."""
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="generator inside"):
        gradcheck(lambda x: ops.dropout(x, 0.5, rng), [X])

    def two_faced(x):
        factor = 2.0 if needs_grad(x)[0] else 3.0
        return record("two-faced", factor * x.data, (x,), lambda dy: (factor * dy,))

    with pytest.raises(ConfigError, match="first with recording and then without"):
        gradcheck(two_faced, [X])


def test_wrong_use_is_an_error():
    with pytest.raises(ConfigError, match="float64"):
        gradcheck(lambda x: Tensor(x.data.astype(np.float32)), [X])
    with pytest.raises(ConfigError, match="needs a Tensor"):
        gradcheck(lambda x: x.data, [X])
    with pytest.raises(ConfigError, match="at least one input"):
        gradcheck(lambda: Tensor(X), [])


def test_parameters_are_put_back_even_where_the_function_fails():
    model, batch = gradcases.small_model(), gradcases.small_batch()
    tensors = model.parameters()
    before = {name: tensor.data for name, tensor in tensors.items()}
    calls = []

    def loss():
        calls.append(1)
        if len(calls) == 10:
            raise ArithmeticError
        return model.loss(batch)

    with pytest.raises(ArithmeticError):
        check_parameters(loss, tensors)
    assert all(tensors[name].data is data for name, data in before.items())


def test_a_frozen_parameter_fails():
    model, batch = gradcases.small_model(), gradcases.small_batch()
    tensors = {"wte.weight": model.wte.weight, "wpe.weight": model.wpe.weight}
    model.wpe.weight.trainable = False
    report = check_parameters(lambda: model.loss(batch), tensors)
    assert [row.passed for row in report.rows] == [True, False]


def test_script(capsys, monkeypatch):
    good = gradcases.Case("good", ops.linear, [np.ones((2, 3)), X.T])
    bad = gradcases.Case("bad", lambda x: cube(x, lambda x: 6 * x * x), [X])
    monkeypatch.setattr(gradcases, "models", lambda: [])
    monkeypatch.setattr(gradcases, "operations", lambda: [good])
    assert command.main(command.parse_arguments([])) == 0
    table, summary = capsys.readouterr().out.split("\n\n")
    heading, *rows = table.splitlines()
    assert heading.split()[:2] == ["operation", "argument"]
    assert [row.split()[:2] for row in rows] == [["good", "x"], ["good", "weight"]]
    assert [line.split()[:2] for line in summary.splitlines()] == [
        ["operation", "gradients"], ["good", "2"], ["2", "passed,"]]
    monkeypatch.setattr(gradcases, "operations", lambda: [good, bad])
    assert command.main(command.parse_arguments(["--seed", "1"])) == 1
    table, summary = capsys.readouterr().out.split("\n\n")
    assert "analytic / numeric = 2" in table.splitlines()[-1]
    assert summary.endswith("\n2 passed, 1 failed\n")
