"""The adapters in tests/goldens/adapters made again with the PEFT that is installed: they cannot go stale unseen."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from npgpt.files import safetensors
from tests.goldens import make_adapters

from .reference import assert_all_close, assert_close


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's, on tied tables and on B's bias
@pytest.mark.parametrize("name", make_adapters.ADAPTERS)
def test_adapters_are_as_peft_makes_them_now(name, tmp_path):
    model, ids, logits = make_adapters.make(name)
    with np.load(make_adapters.FOLDER / name / "answer.npz") as answer:
        assert np.array_equal(answer["ids"], ids)
        assert_close(answer["logits"], logits, 1e-5, "logits")
    make_adapters.save(model, name, tmp_path)
    stored, made = (safetensors.read(folder / "adapter_model.safetensors")
                    for folder in (make_adapters.FOLDER / name, tmp_path))
    assert_all_close(stored, made, 1e-5)
