"""EleutherAI's lm-evaluation-harness, where lm_eval is installed: npgpt answers as transformers does there."""

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("lm_eval", exc_type=ImportError)

import lm_eval
import torch
import transformers
from hypothesis import assume, given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import npgpt
from npgpt.data import read_records
from npgpt.evaluation import pairs, questions
from npgpt.evaluation.harness import NpgptLM
from npgpt.evaluation.records import Records, complete

pytestmark = pytest.mark.filterwarnings("default")  # what lm_eval and its many dependencies warn of is theirs

TEXT = " ".join(f"The learning rate of step {i} is a number, and so is its loss." for i in range(40))
PAIRS = [("The learning", " rate"), ("The learning ", "rate is"), ("A", " b"), ("", " rate is a"),
         (TEXT, " and the end"), ("The learning rate", " is the learning rate"), ("The l", "oss"), ("l", "oss"),
         ("The learning ra", "te"), ("The  ", " "), ("", "<|endoftext|>the"), ("<|endoftext|>", "the")]
NOTHING_LEFT = ("The learning rate is a n", "umber")  # context and whole have eight tokens each


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The embedded model in float32, which is what both sides then compute in."""
    folder = tmp_path_factory.mktemp("model")
    npgpt.GPT2.from_pretrained("tiny").save_pretrained(folder)
    npgpt.Tokenizer.from_pretrained("tiny").save(folder)
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    return NpgptLM.create_from_arg_string(f"model={folder}", {"batch_size": 1, "device": "cpu"})


@pytest.fixture(scope="module")
def theirs(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"),
                                                     eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    return HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=1, add_bos_token=False)


def requests(kind, arguments):
    return [Instance(request_type=kind, doc={}, arguments=each, idx=i) for i, each in enumerate(arguments)]


def test_loglikelihood(ours, theirs):
    asked = requests("loglikelihood", PAIRS)
    for (a, greedy), (b, same) in zip(ours.loglikelihood(asked), theirs.loglikelihood(asked), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
        assert greedy == same


@given(st.text(" aehlmnorst.1\n\u00e9", max_size=12), st.text(" aehlmnorst.1\n\u00e9", max_size=6))
def test_pairs(ours, theirs, context, continuation):
    """The ids of every pair are the harness's, if the harness has any."""
    assume(context.strip() and continuation)
    asked, answer = (ids.tolist() for ids in pairs.encode_pair(ours.tokenizer, context, continuation, False))
    their_asked, their_answer = theirs._encode_pair(context, continuation)
    assert asked == their_asked
    assert answer == their_answer or (not their_answer and answer)


def test_a_pair_that_leaves_nothing_after_the_cut(ours, theirs):
    """There the harness stops. Ours is the probability of the continuation's own tokens."""
    with pytest.raises(AssertionError):
        theirs.loglikelihood(requests("loglikelihood", [NOTHING_LEFT]))
    apart = [theirs.tok_encode(text) for text in NOTHING_LEFT]
    [(expected, greedy)] = theirs._loglikelihood_tokens([(NOTHING_LEFT, *apart)])
    [(found, same)] = ours.loglikelihood(requests("loglikelihood", [NOTHING_LEFT]))
    assert found == pytest.approx(expected, rel=1e-5)
    assert greedy == same


def test_loglikelihood_rolling(ours, theirs):
    asked = requests("loglikelihood_rolling", [(TEXT,), ("Short.",), (TEXT[:1500],)])
    assert ours.loglikelihood_rolling(asked) == pytest.approx(theirs.loglikelihood_rolling(asked), rel=1e-5)


def test_generate_until(ours, theirs):
    options = {"do_sample": False, "max_gen_toks": 24}
    asked = requests("generate_until", [("The learning rate", {**options, "until": ["\n"]}),
                                        ("An array is", {**options, "until": [" the", ","]}),
                                        (TEXT, {**options, "until": []})])
    assert ours.generate_until(asked) == theirs.generate_until(asked)


def test_a_whole_task_is_that_of_evaluate(ours, tmp_path):
    """The harness's own run over a task of its kind, and the same by `npgpt.evaluation.questions`."""
    texts = [sentence + " the loss" for sentence in TEXT.split(".")[:12]]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "last.yaml").write_text(f"""\
task: last_word
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "texts.jsonl"}}}}}
output_type: loglikelihood
test_split: test
doc_to_text: "{{{{text.split(' ')[:-1]|join(' ')}}}}"
doc_to_target: "{{{{' '+text.split(' ')[-1]}}}}"
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
""")
    results = lm_eval.simple_evaluate(ours, tasks=["last_word"], bootstrap_iters=0,
                                      task_manager=TaskManager(include_path=str(tmp_path)))["results"]["last_word"]
    task = questions.LastWord(ours.tokenizer, questions.read_passages(read_records(tmp_path / "texts.jsonl")))
    records = complete(Records(), "", task, ours.model)
    found = {name: score(rows(records).sum(axis=0)) for name, (rows, score) in task.measures.items()}
    assert results["perplexity,none"] == pytest.approx(found["perplexity"], rel=1e-6)
    assert 100 * results["acc,none"] == pytest.approx(found["accuracy"])
