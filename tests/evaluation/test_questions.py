"""Questions: how they are read from files, what the model is asked, and how its answers are scored."""

import json
import math

import numpy as np
import pytest

import npgpt
from npgpt import data
from npgpt.evaluation import evaluate, metrics, pairs, questions
from npgpt.evaluation.records import Records, complete
from npgpt.runtime.errors import ConfigError, FormatError
from tests.evaluation.test_tasks import Letters

CONFIG = npgpt.GPT2Config(vocab_size=128, n_positions=48, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)


class SpacedLetters(Letters):
    """A tokenizer of characters, but a space belongs to the letter after it."""

    special_tokens = {"<a>": 1, "<b>": 2}  # noqa: RUF012

    def encode(self, text, split_special_tokens=False):
        for token, i in self.special_tokens.items() if not split_special_tokens else ():
            text = text.replace(token, chr(i))
        codes, ids = text.encode("ascii"), []
        for i, code in enumerate(codes):
            if code != 32:
                ids.append(code + (1 if codes[i - 1:i] == b" " and code < 127 else 0))
        return np.array(ids, np.int64)


TOKENIZER = SpacedLetters()


@pytest.fixture(scope="module")
def model():
    return npgpt.GPT2(CONFIG, seed=1, dtype=np.float64)


def records(*objects):
    return [data.Record(f"file:{i}", fields) for i, fields in enumerate(objects, start=1)]


def answered(task, model):
    found = complete(Records(), "", task, model)
    return found, {name: float(score(rows(found).sum(axis=0))) for name, (rows, score) in task.measures.items()}


def nll_of(model, context, continuation):
    """Return -log p of each token of the continuation, one at a time, and whether all are the likeliest."""
    whole, losses, greedy = TOKENIZER.encode(context + continuation), [], True
    start = len(TOKENIZER.encode(context.rstrip()))
    whole = whole if start else np.append(0, whole)
    for t in range(max(start, 1), len(whole)):
        logits = model.logits(whole[:t])[-1]
        losses.append(np.log(np.exp(logits).sum()) - logits[whole[t]])
        greedy = greedy and logits.argmax() == whole[t]
    return np.array(losses), greedy


def test_special_tokens_of_a_pair():
    """A special token in the template is that token; the same characters in a text are plain text."""
    context = data.Text.join([data.Text.literal("<a>"), "x<a>"])
    for split, asked, answer in ((True, [1, 120, 60, 97, 62], [60, 98, 62]), (False, [1, 120, 1], [2])):
        assert [ids.tolist() for ids in pairs.encode_pair(TOKENIZER, context, "<b>", split)] == [asked, answer]
    [question, _] = questions.read_labelled(records({"text": "<a>", "label": "no"}, {"text": "x", "label": "yes"}),
                                            "<b>{text}<b>")
    task = questions.Classification(TOKENIZER, [question])
    assert task.windows(0, 9)[0].ids.tolist() == [2, 60, 97, 62, 2, *TOKENIZER.encode("x no")[1:-1]]
    parsed = questions.Classification(TOKENIZER, [question], split_special_tokens=False)
    assert parsed.windows(0, 9)[0].ids.tolist() == [2, 1, 2, *TOKENIZER.encode("x no")[1:-1]]
    word = questions.LastWord(TOKENIZER, [("<a>", "<b>")], split_special_tokens=False)
    assert word.windows(0, 9)[0].ids.tolist() == [1] and word.windows(0, 9)[0].targets.tolist() == [2]


def test_special_tokens_of_a_prompt(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "<b>", "completion": "y<b>"}))
    [item] = questions.read_prompts(data.Documents(tmp_path / "pairs.jsonl", template="<a>{prompt}<a>{completion}"))
    assert item.references == ["y<b>"]
    for split, ids in ((True, [1, 60, 98, 62, 1]), (False, [1, 2, 1])):
        task = questions.Answers(TOKENIZER, [item], {}, split_special_tokens=split)
        assert task._prompts[0].tolist() == ids
        assert task.key(0) != questions.Answers(TOKENIZER, [item], {}, split_special_tokens=not split).key(0)


def test_lambada(model):
    texts = ["the cat sat on the mat", "one two", "say it again and"]
    ids = TOKENIZER.encode("say it again")
    texts.append("say it again " + chr(model.logits(ids)[-1, 33:].argmax() + 33 - 1))  # the likeliest letter
    task = questions.LastWord(TOKENIZER, questions.read_passages(records(*({"text": text} for text in texts))))
    _, found = answered(task, model)
    losses = [nll_of(model, *(text[:text.rindex(" ")], text[text.rindex(" "):])) for text in texts]
    assert found["perplexity"] == pytest.approx(math.exp(np.mean([nll.sum() for nll, _ in losses])), rel=1e-12)
    assert found["accuracy"] == 100 * np.mean([greedy for _, greedy in losses])


QUESTIONS = [
    {"context": "we eat", "choices": ["bread", "a very long answer", "it"], "label": 2},
    {"context": "they went", "choices": ["up", "out of the house"], "label": "1"},
    {"context": "x", "choices": ["y z", "z"], "label": 0},
]


def test_multiple_choice(model):
    """By the sum, by characters (without the space before a choice), and by tokens."""
    task = questions.MultipleChoice(TOKENIZER, questions.read_questions(records(*QUESTIONS)))
    found, scores = answered(task, model)
    right = {"accuracy": 0, "accuracy, by characters": 0, "accuracy, by tokens": 0}
    for question, record in zip(QUESTIONS, found, strict=True):
        losses = [nll_of(model, question["context"], " " + choice)[0] for choice in question["choices"]]
        sums = np.array([nll.sum() for nll in losses])
        np.testing.assert_allclose(record["nll"], sums, rtol=1e-12)
        for name, divisor in (("accuracy", 1), ("accuracy, by characters", [len(c) for c in question["choices"]]),
                              ("accuracy, by tokens", [len(nll) for nll in losses])):
            right[name] += int((sums / divisor).argmin()) == int(question["label"])
    assert scores == {name: pytest.approx(100 * count / 3) for name, count in right.items()}
    assert len(set(scores.values())) > 1, "the three say the same, which shows little"


def test_a_question_of_hellaswag():
    """The text is the same as in the task hellaswag of lm-evaluation-harness."""
    [question] = questions.read_questions(records({
        "activity_label": "Roof shingle removal", "ctx_a": "A man is sitting on a roof.", "ctx_b": "he",
        "endings": ["is using [substeps] wrap.", " starts [title] it  up.", "x", "y"], "label": "3"}))
    assert question.context == "Roof shingle removal: A man is sitting on a roof. He"
    assert question.choices == [" is using wrap.", " starts. it up.", " x", " y"]
    assert question.label == 3


def test_classification(model):
    texts = ["good", "bad", "fine", "poor", "so so"]
    labels = ["+", "-", "+", "-", "="]
    items = questions.read_labelled(records(*({"text": text, "label": label} for text, label in zip(texts, labels,
                                                                                                 strict=True))))
    assert items[0] == ("good\nLabel:", [" +", " -", " ="], 0)
    found, scores = answered(questions.Classification(TOKENIZER, items), model)
    chosen = [int(np.argmin(record["nll"])) for record in found]
    true = ["+-=".index(label) for label in labels]
    assert scores["accuracy"] == pytest.approx(20 * sum(a == b for a, b in zip(chosen, true, strict=True)))
    right = [sum(a == b == label for a, b in zip(chosen, true, strict=True)) for label in range(3)]
    f1 = [2 * right[label] / (chosen.count(label) + true.count(label)) for label in range(3)]
    assert scores["macro-F1"] == pytest.approx(100 * np.mean(f1))


def test_macro_f1_by_hand():
    """A label that is neither answered nor true does not count."""
    confusion = np.array([[3, 1, 0], [1, 1, 0], [0, 0, 0]], float)
    assert questions._macro_f1(confusion.ravel()) == pytest.approx(100 * (6 / 8 + 2 / 4) / 2)


def test_labels_can_be_named():
    items = questions.read_labelled(records({"text": "x", "label": "no"}), "{text}?", ["yes", "no"])
    assert items == [("x?", [" yes", " no"], 1)]
    with pytest.raises(FormatError, match="file:1: its label is 'no'; expected one of yes, maybe"):
        questions.read_labelled(records({"text": "x", "label": "no"}), labels=["yes", "maybe"])
    with pytest.raises(ConfigError, match="the labels are no: expected at least two"):
        questions.read_labelled(records({"text": "x", "label": "no"}))


def test_answers_are_what_greedy_decoding_says(model, tmp_path):
    (tmp_path / "pairs.txt").write_text("ab||c\nx||y\nab||d\n")
    items = questions.read_prompts(data.Documents(tmp_path / "pairs.txt", separator="||"))
    assert items == [(["ab||"], ["c", "d"]), (["x||"], ["y"])]
    seen = []

    def rows(outputs, references):
        seen.append((outputs, references))
        return metrics.exact_match_rows(outputs, references)

    task = questions.Answers(TOKENIZER, items, {"exact match": (rows, metrics.mean_score)}, max_new_tokens=9)
    found, scores = answered(task, model)
    for item, record in zip(items, found, strict=True):
        ids = TOKENIZER.encode(item.text[0])
        out = npgpt.generate(model, ids, 9, temperature=0, eos_id=0)[len(ids):]
        assert record["output"] == TOKENIZER.decode(out[out != 0]).strip()
    assert scores == {"exact match": 0}
    assert seen == [([record["output"] for record in found], [["c", "d"], ["y"]])]
    first = found[0]["output"]
    stop = next(letter for letter in first[1:] if letter != first[0])
    stopped = questions.Answers(TOKENIZER, items, {}, max_new_tokens=9, stop=stop)
    assert answered(stopped, model)[0][0]["output"] == first[:first.index(stop)].strip()
    assert stopped.key(0) != task.key(0) != task.key(1)


def test_a_long_prompt_is_read_from_its_end(model):
    """The end of the prompt is read, so that prompt and answer fit into the context."""
    task = questions.Answers(TOKENIZER, [questions.Prompt(["x" * 100 + "abc"], ["y"])], {}, max_new_tokens=40)
    [record] = answered(task, model)[0]
    out = npgpt.generate(model, TOKENIZER.encode("xxxxxabc"), 40, temperature=0, eos_id=0)[8:]
    assert record["output"] == TOKENIZER.decode(out[out != 0]).strip()
    with pytest.raises(ConfigError, match="max_new_tokens = 48 leaves no room for a prompt in this model's context"):
        answered(questions.Answers(TOKENIZER, task.items, {}, max_new_tokens=48), model)


def test_the_prompt_of_a_conversation_is_all_before_the_last_answer(tmp_path):
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"},
        {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}))
    [item] = questions.read_prompts(data.Documents(tmp_path / "chat.jsonl"))
    assert item.references == ["!"]
    assert "".join("<END>" if text is data.END else text for text in item.text).startswith("### user:\nhi")
    assert data.END in item.text


@pytest.mark.parametrize("read, fields, message", [
    (questions.read_passages, {"text": "word"}, "does not end in a space and a word"),
    (questions.read_passages, {"text": "ends "}, "does not end in a space and a word"),
    (questions.read_passages, {"txt": "a b"}, '"text" is missing or not a text'),
    (questions.read_questions, {"context": "a", "choices": ["b"], "label": 0}, 'no "choices" with at least two texts'),
    (questions.read_questions, {"context": "a", "label": 0}, 'no "choices" with'),
    (questions.read_questions, {"choices": ["a", "b"], "label": 0}, '"context" is missing or not a text'),
    (questions.read_questions, {"context": "a", "choices": ["b", "c"], "label": 2}, 'its "label" is 2; expected'),
    (questions.read_questions, {"context": "a", "choices": ["b", "c"], "label": -1}, 'its "label" is -1'),
    (questions.read_questions, {"context": "a", "choices": ["b", "c"]}, 'its "label" is None'),
    (questions.read_labelled, {"text": "a", "label": 1}, '"label" is missing or not a text'),
])
def test_what_is_refused(read, fields, message):
    with pytest.raises(FormatError, match=f"file:1: .*{message}"):
        read(records(fields))


def test_plain_texts_have_no_prompt(tmp_path):
    (tmp_path / "texts.txt").write_text("a text\n")
    with pytest.raises(FormatError, match=r"texts.txt:1: no prompt before an answer; expected .* a separator"):
        questions.read_prompts(data.Documents(tmp_path / "texts.txt"))


def test_a_blank_answer_is_passed_over_as_in_training(tmp_path):
    (tmp_path / "pairs.csv").write_text("question,answer\nA?,a\nB?,\n")
    [item] = questions.read_prompts(data.Documents(tmp_path / "pairs.csv", template="{question} {answer}"))
    assert item.references == ["a"]


def test_long_questions_are_cut_on_the_left(model):
    context = "abcde " * 20
    task = questions.LastWord(TOKENIZER, [(context, " end")])
    [record], _ = answered(task, model)
    ids = TOKENIZER.encode(context + "end")[-49:]
    [(_, losses, _)] = evaluate.window_losses(model, [evaluate.window(ids, 0, len(ids))])
    assert record["nll"] == pytest.approx(losses[-3:].sum(), rel=1e-12)


@pytest.mark.parametrize("template", ["Which?", "{text} {premise}", "{premise}"])
def test_a_template_for_labels_has_the_text_and_no_other_field(template):
    with pytest.raises(ConfigError, match=r"it must have \{text\} and no other"):
        questions.read_labelled(records({"text": "x", "label": "no"}), template, ["yes", "no"])


def test_what_is_asked_of_a_text_is_part_of_its_key():
    """The ids are the same, but one question asks for two of them and the other for one."""
    two, one = (questions.LastWord(TOKENIZER, [pair]) for pair in (("a", " bc"), ("ab", "c")))
    shorter = questions.LastWord(TOKENIZER, [("a", "bc")])
    assert np.array_equal(shorter.windows(0, 9)[0].ids, one.windows(0, 9)[0].ids)
    assert len({task.key(0) for task in (two, one, shorter)}) == 3


def test_a_word_of_several_tokens_is_right_where_each_is_the_likeliest():
    task = questions.LastWord(TOKENIZER, [("a", " bc")])
    for greedy in ([True, True], [True, False], [False, True], [False, False]):
        assert task.record(0, [(np.ones(2), np.array(greedy))])["greedy"] == all(greedy)


def test_characters_and_tokens_choose_apart():
    """A space inside a choice is a character but not a token: the first choice has 9 characters in 5 tokens."""
    task = questions.MultipleChoice(TOKENIZER, [questions.Question("a", [" b c d e f", " bcd"], 0)])
    found = [{"nll": [8.0, 4.0]}]  # 0.89 and 1.33 per character, 1.6 and 1.33 per token
    right = {name: float(score(rows(found).sum(axis=0))) for name, (rows, score) in task.measures.items()}
    assert right == {"accuracy": 0, "accuracy, by characters": 100, "accuracy, by tokens": 0}
