"""The live comparison with torch, transformers and PEFT, which the `parity` extra installs.

Each module here begins with `pytest.importorskip`: without torch it is skipped whole.
"""


def pytest_configure(config):
    """Warnings are errors in this suite; this one is between PEFT and transformers and nothing we can mend."""
    config.addinivalue_line("filterwarnings", "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
