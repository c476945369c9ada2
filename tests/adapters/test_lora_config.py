import math

import pytest

from npgpt import LoraConfig
from npgpt.runtime.errors import ConfigError


@pytest.mark.parametrize(
    "fields, message",
    [({"r": 0}, "rank r = 0"), ({"r": -1}, "rank"), ({"r": 1.5}, "rank"), ({"r": True}, "rank"),
     ({"r": 65537}, "from 1 to 65,536"),
     ({"lora_alpha": 0}, "lora_alpha = 0"), ({"lora_alpha": math.inf}, "lora_alpha"),
     ({"lora_dropout": 1.0}, "lora_dropout = 1.0"), ({"lora_dropout": -0.1}, "lora_dropout"),
     ({"target_modules": []}, "target_modules is empty"), ({"target_modules": ""}, "target_modules is empty")],
)
def test_settings_that_cannot_be_used(fields, message):
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**fields)
