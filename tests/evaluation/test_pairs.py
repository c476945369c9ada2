"""A context and its continuation: the ids are those of lm-evaluation-harness."""

import pytest

import npgpt
from npgpt.evaluation import pairs
from tests.evaluation.test_questions import TOKENIZER


@pytest.mark.parametrize("context, continuation, asked, answer", [
    ("a b", " c", [97, 99], [100]), ("a b ", "c", [97, 99], [100]), ("a", "b", [97], [98]),
    ("", "a", [0], [97]), (" \n", " a", [0], [10 + 1, 98]),
])
def test_a_pair_is_cut_where_the_context_ends(context, continuation, asked, answer):
    """White space at the end of the context goes to the continuation. An empty context becomes an end of text."""
    pair = pairs.encode_pair(TOKENIZER, context, continuation)
    assert [ids.tolist() for ids in pair] == [asked, answer]


@pytest.mark.parametrize("context, continuation, asked, answer", [
    ("The l", "oss", [325, 304], [1461]),                                 # whole: The| lo|ss
    ("The learning ra", "te", [325, 613, 1318, 501], [386]),
    ("l", "oss", [75], [1461]),
    ("The learning rate is a n", "umber", [325, 613, 1318, 646, 386, 283, 257, 289], "umber"),
    ("", "<|endoftext|>the", [3071], [1462]), ("", "<|endoftext|>", [3071], [3071]),
])
def test_tokens_that_span_context_and_continuation(context, continuation, asked, answer):
    """The ids are lm-evaluation-harness's. If nothing is left after the cut, the continuation is encoded alone."""
    tokenizer = npgpt.Tokenizer.from_pretrained("tiny")
    pair = pairs.encode_pair(tokenizer, context, continuation, split_special_tokens=False)
    answer = tokenizer.encode(answer).tolist() if isinstance(answer, str) else answer
    assert [ids.tolist() for ids in pair] == [asked, answer]


@pytest.mark.parametrize("context", ["", "a"])
def test_an_empty_continuation_is_refused(context):
    with pytest.raises(npgpt.NpgptError, match=f"the continuation of '{context}' is empty"):
        pairs.encode_pair(TOKENIZER, context, "")
