"""What holds for every operation, at every shape in `checking.gradcases`."""

import numpy as np
import pytest

from npgpt import Tensor, backward
from npgpt.checking import gradcases
from npgpt.checking.gradcheck import check_parameters, gradcheck
from npgpt.runtime import shares
from npgpt.runtime.threads import workers

CASES = gradcases.operations()
MODELS = gradcases.models()
FUSED = {"linear", "lora_linear", "dora_linear", "layer_norm", "cross_entropy"}  # those that read several tensors


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


def tensors_of(case, dtype=np.float64, trainable=True):
    return [Tensor(array.astype(dtype), trainable) for array in case.arrays]


def cotangent(output):
    return np.random.default_rng(1).standard_normal(output.shape).astype(output.dtype)


def gradients_of(case, tensors):
    output = case.function(*tensors)
    return output, backward(output, cotangent(output))


def test_gradients_are_those_of_finite_differences(case):
    report = gradcheck(case.function, case.arrays)
    assert report.passed, f"\n{report}"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_gradients_of_models_are_those_of_finite_differences(model):
    report = check_parameters(model.loss, model.tensors)
    assert report.passed, f"\n{report}"
    assert [row.argument for row in report.rows] == list(model.tensors)


def test_every_operation_has_a_case():
    from npgpt import ops
    checked = {case.name.split(",")[0] for case in CASES}
    assert set(ops.__all__) - {"ACTIVATIONS"} <= checked


def test_float32_stays_float32_and_agrees_with_float64(case, assert_close):
    single, double = tensors_of(case, np.float32), tensors_of(case)
    output, gradients = gradients_of(case, single)
    expected_output, expected = gradients_of(case, double)
    assert output.dtype == np.float32
    assert expected_output.dtype == np.float64
    assert_close(output.data, expected_output.data, 2e-5, "outputs")
    for ours, theirs in zip(single, double, strict=True):
        assert gradients[ours].dtype == np.float32
        assert expected[theirs].dtype == np.float64
        assert_close(gradients[ours], expected[theirs], 2e-5, "gradients")


def test_nothing_is_recorded_where_all_is_frozen(case):
    frozen = case.function(*tensors_of(case, trainable=False))
    assert frozen.record is None
    assert np.array_equal(frozen.data, case.function(*tensors_of(case)).data)


def test_freezing_some_inputs_changes_no_other_gradient(case, assert_close):
    tensors = tensors_of(case)
    everything = gradients_of(case, tensors)[1]
    for alone in tensors:
        for tensor in tensors:
            tensor.trainable = tensor is alone
        gradients = gradients_of(case, tensors)[1]
        assert list(gradients) == [alone]
        if case.name.startswith("cross_entropy"):  # makes the logits again where its table is trained
            assert_close(gradients[alone], everything[alone])
        else:
            assert np.array_equal(gradients[alone], everything[alone])


def test_workers_change_nothing(case, monkeypatch, assert_close):
    """Even where each has next to nothing to do; and the gradient may be worked out by others than the output."""
    monkeypatch.setattr(shares, "LEAST_BYTES", 1)
    monkeypatch.setattr(shares, "LEAST_PRODUCT", 1)
    tensors = tensors_of(case)
    expected = case.function(*tensors)
    dy = np.random.default_rng(0).standard_normal(expected.shape)
    gradients = backward(expected, dy)
    with workers(3):
        actual = case.function(*tensors)
    with workers(2):
        shared = backward(actual, dy)
    assert_close(actual.data, expected.data)
    for tensor, gradient in gradients.items():
        assert_close(shared[tensor], gradient)


@pytest.mark.parametrize("case", [case for case in CASES if case.name in FUSED], ids=lambda case: case.name)
def test_the_gradient_of_a_frozen_input_is_not_computed(case):
    for i in range(len(case.arrays)):
        tensors = [Tensor(array, trainable=k == i) for k, array in enumerate(case.arrays)]
        output = case.function(*tensors)
        assert sum(gradient is not None for gradient in output.record.rule(cotangent(output))) == 1


def test_inputs_and_arriving_gradient_are_only_read(case):
    """Weights may be mapped read-only from a file, and a gradient may be on its way to several operations."""
    tensors = tensors_of(case)
    for tensor in tensors:
        tensor.data.flags.writeable = False
    output = case.function(*tensors)
    dy = cotangent(output)
    dy.flags.writeable = False
    backward(output, dy)
