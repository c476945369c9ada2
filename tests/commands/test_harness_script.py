"""harness.py hands over to lm_eval, where that is installed; tests/parity/test_harness.py has the rest."""

import sys

import harness
import pytest

from npgpt.runtime.errors import NpgptError


def test_without_lm_eval_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(NpgptError, match=r"there is no lm_eval\S*; install it with: pip install '\.\[lm-eval\]'"):
        harness.main()
