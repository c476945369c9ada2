"""WikiText: where pages begin, the detokeniser, and the number of words."""

import pytest

from npgpt.evaluation import wikitext

FILE = " \n = First = \n \n A line . \n = = Part = = \n \n More \n = Second = \n \n end \n"


def test_a_page_begins_at_its_title():
    assert wikitext.pages(FILE) == [" = First = \n \n A line . \n = = Part = = \n \n More ", " = Second = \n \n end \n"]
    assert wikitext.pages(" no title \n = First = \n x ") == [" no title ", " = First = \n x "]
    assert wikitext.pages("nothing") == ["nothing"]


def test_lines_joined_as_in_hugging_faces_documentation():
    assert wikitext.joined(" \n = First = \n \n A line . \n") == "\n\n = First = \n\n\n\n\n A line . \n"
    assert wikitext.joined("no end") == "no end\n"


@pytest.mark.parametrize("text, words", [("a b", 2), (" a  b \n", 4), ("", 1)])
def test_words_are_what_white_space_divides(text, words):
    assert wikitext.words(text) == words


@pytest.mark.parametrize("text, plain", [  # results of wikitext_detokenizer, lm-evaluation-harness 0.4
    (" = First = \n \n = = Part = = \n = = = Sub = = = \n = = = = Low = = = = \n",
     " = First =\n\n== Part ==\n=== Sub ===\n==== Low ====\n"),
    ("a @-@ b 1 @,@ 000 3 @.@ 5 x , y ; z : w . v ! u ? t", "a-b 1,000 3.5 x, y; z: w. v! u? t"),
    ('( a ) [ b ] { c } " d " \' e \'', "(a) [b] {c} \"d\" 'e'"),
    ("the dogs ' tail , 20 ° C , N units", "the dogs' tail, 20°C, 1 units"), ("it 's here", "it's here"),
    ("/' 3/", "/'[0-9]/"),
])
def test_detokenise(text, plain):
    assert wikitext.detokenise(text) == plain
