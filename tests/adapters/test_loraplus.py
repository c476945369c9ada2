from npgpt.adapters.loraplus import loraplus
from tests.adapters.test_updates import fresh


def test_loraplus_names_b_and_the_vectors():
    model = fresh("DoRA, bias all")
    ratios = loraplus(model.trainable_parameters(), 16)
    named = {name.rpartition(".")[2] for name in ratios}
    assert named == {"lora_B", "lora_magnitude_vector", "trained_bias"}
    assert set(ratios.values()) == {16}
    assert model.trainable_parameters().keys() - ratios.keys() == {
        name for name in model.trainable_parameters() if name.endswith("lora_A")}
