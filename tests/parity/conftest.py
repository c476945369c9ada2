"""The live comparison with torch, transformers and PEFT, which the `parity` extra installs.

Each module here begins with `pytest.importorskip`: without torch it is skipped whole.
"""


def pytest_configure(config):
    """Warnings are errors in this suite; these are between PEFT, transformers and torch and nothing we can mend."""
    config.addinivalue_line("filterwarnings", "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
