import numpy as np
import pytest

from npgpt import LoraConfig, add_lora
from npgpt.adapters.stack import updates
from npgpt.checking.gradcases import small_model
from tests.adapters.test_updates import fresh


def test_pissa_starts_at_the_largest_singular_values(assert_close):
    model = fresh("PiSSA")
    for module, update in updates(model).items():
        weight = model.parameters()[f"{module}.weight"].data
        U, S, Vt = np.linalg.svd(weight.T)
        assert_close(update.scale * update.lora_B.data @ update.lora_A.data, U[:, :2] * S[:2] @ Vt[:2])
        assert_close(np.linalg.norm(update.lora_A.data, axis=1), np.sqrt(S[:2] / update.scale))


def test_olora_starts_at_orthonormal_columns(assert_close):
    model = fresh("OLoRA")
    for module, update in updates(model).items():
        weight = model.parameters()[f"{module}.weight"].data
        assert_close(update.lora_B.data.T @ update.lora_B.data, np.eye(2))
        assert_close(update.lora_B.data.T @ weight.T, update.lora_A.data)  # Qᵀ Wᵀ = R


def test_orthogonal_starts_with_two_halves_that_cancel(assert_close):
    for update in updates(fresh("orthogonal")).values():
        A, B = np.abs(update.lora_A.data).max(), np.abs(update.lora_B.data).max()
        assert A > 0.01 and B > 0.01
        assert np.abs(update.lora_B.data @ update.lora_A.data).max() < 1e-12 * A * B  # rounding is left


def test_gaussian_has_the_deviation_of_one_over_r():
    model = add_lora(small_model(n_embd=64), LoraConfig(r=8, target_modules=["c_attn"], init_lora_weights="gaussian"))
    for update in updates(model).values():
        assert update.lora_A.data.std() == pytest.approx(1 / 8, rel=0.1)
        assert not update.lora_B.data.any()


def test_without_initialisation_b_is_random_too():
    for update in updates(fresh("plain", init_lora_weights=False)).values():
        assert update.lora_A.data.any() and update.lora_B.data.any()
