"""Messages: one printable line, whatever a file holds."""

import pytest

from npgpt.runtime import errors
from npgpt.runtime.errors import NpgptError, harmless, one_line, printable

BAD = "a\x1b[2J\x07\r\n\x9b31m\u202eb\u2028c\udc80\0"


@pytest.mark.parametrize("error", [each for each in vars(errors).values()
                                   if isinstance(each, type) and issubclass(each, NpgptError)])
def test_every_error_is_one_printable_line(error):
    assert str(error(BAD)) == r"a\x1b[2J\x07\r\n\x9b31m\u202eb\u2028c\udc80\x00"


def test_a_long_message_is_shortened():
    text = one_line("x" * 5000 + "\n")
    assert len(text) < 1100 and text.isprintable() and text.endswith(r"x\n")


def test_text_of_several_lines_can_be_harmless():
    assert harmless(BAD) == "a\\x1b[2J\\x07\\r\n\\x9b31m\\u202eb\\u2028c\\udc80\\x00"
    assert harmless(BAD, kept="\r") == r"a\x1b[2J\x07" + "\r" + r"\n\x9b31m\u202eb\u2028c\udc80\x00"
    usual = "caf\u00e9\t\u4f60\u597d \U0001f468\u200d\U0001f469\u200d\U0001f467 \u05e9\u05dc\u05d5\u05dd\n\u00a0|"
    assert harmless(usual) == usual and printable("caf\u00e9") == "caf\u00e9"
