"""The golden files made again with the torch, transformers and PEFT that are installed, and npgpt against those.

The committed files cannot go stale unseen: where a new version computes something else, or the script and the files no
longer belong together, this fails.
"""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from tests.goldens import golden, make_goldens
from tests.goldens.test_goldens import (  # noqa: F401  the same tests, on the `case` and in the order of this module
    precision,
    test_fifty_steps,
    test_hidden_states_of_a_ragged_batch,
    test_logits,
    test_loss_and_every_gradient,
    test_steps_in_float32,
    without_key_bias,
)

# Both sides are float64. Here torch stands against torch, on perhaps another processor; see BOUNDS in test_goldens.py.
BOUND, BOUND_TRAINED = 1e-12, 1e-11


@pytest.fixture(scope="module", params=make_goldens.CASES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def case(name):
    """(question, answer) made now. Its scope is the module, so each is made once."""
    return make_goldens.make(name)


def test_every_golden_has_its_files_and_no_file_is_left_over():
    assert sorted(make_goldens.CASES) == golden.NAMES == sorted(path.stem for path in golden.FOLDER.glob("*.npz"))


def test_the_files_hold_what_is_made_now(name, case, assert_close):
    (question, answer), (filed_question, filed_answer) = case, golden.read(name)
    assert {**filed_question, "made_with": None} == {**question, "made_with": None}
    assert filed_answer.keys() == answer.keys()
    for key, array in answer.items():
        filed = filed_answer[key]
        assert filed.dtype == array.dtype == np.float64
        if key.startswith("trained/"):
            filed, array = without_key_bias(key, filed), without_key_bias(key, array)
        trained = key.startswith(("trained/", "losses", "grad_norms"))
        assert_close(filed, array, BOUND_TRAINED if trained else BOUND, key)
