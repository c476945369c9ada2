"""Tasks: their windows and measures, against a computation of one token at a time."""

import math

import numpy as np
import pytest

import npgpt
from npgpt.data import END, Document, Stream, encode
from npgpt.evaluation import evaluate, metrics, questions, tasks
from npgpt.evaluation.records import Records, complete
from npgpt.runtime.errors import ConfigError

CONFIG = npgpt.GPT2Config(vocab_size=128, n_positions=16, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)


class Letters:
    """A tokenizer whose tokens are ASCII characters."""

    eos_id, end_ids, start_ids = 0, [0], ()
    special_tokens = {}  # noqa: RUF012

    def encode(self, text, split_special_tokens=False):
        return np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64)

    def encode_batch(self, texts, split_special_tokens=False):
        return [self.encode(text, split_special_tokens) for text in texts]

    def decode(self, ids):
        return bytes(np.asarray(ids).tolist()).decode("ascii")


TOKENIZER = Letters()


@pytest.fixture(scope="module")
def model():
    return npgpt.GPT2(CONFIG, seed=1, dtype=np.float64)


def nll(model, ids):
    """Return the loss of the last token, given all tokens before it."""
    logits = model.logits(ids[:-1])[-1]
    return np.log(np.exp(logits).sum()) - logits[ids[-1]]


def measured(task, model):
    """Return the score of every measure of the task."""
    records = complete(Records(), "", task, model)
    return {name: float(score(rows(records).sum(axis=0))) for name, (rows, score) in task.measures.items()}


PAIRS = [Document("f:1", [("a stitch", False), (" in time", True), (END, True)], "a"),
         Document("f:2", [("saves nine: ", False), ("1,000.5 of them", True), (END, True), (" or ", False),
                          ("so", True), (END, True)], "b")]
TEXTS = ["a stitch in time", "saves", "nine: 1,000.5 of them are enough"]


def test_special_tokens_in_a_corpus_are_plain_text_unless_asked_for():
    tokenizer = npgpt.Tokenizer.from_pretrained("tiny")
    text, eos = " = A = \n\n one<|endoftext|>two \n", tokenizer.eos_id
    for make in (lambda **options: tasks.Corpus.of_texts(tokenizer, [text], **options),
                 lambda **options: tasks.Corpus.of_wikitext(tokenizer, text, **options)):
        plain, parsed = make(), make(split_special_tokens=False)
        assert eos not in plain.stream[:-1] and eos not in plain.documents[0][1:]
        assert eos in parsed.stream[:-1] and eos in parsed.documents[0][1:]
        assert "<|endoftext|>" in tokenizer.decode(plain.stream[:-1])


def test_perplexity_by_every_protocol(model):
    """Each token is predicted from the tokens that the protocol says."""
    corpus = tasks.Corpus.of_texts(TOKENIZER, TEXTS)
    assert (corpus.words, corpus.bytes) == (11, 53)
    found = measured(tasks.Perplexity(corpus, ("disjoint", "strided", "document"), 16, 8), model)
    stream = TOKENIZER.encode("\0".join([*TEXTS, ""]))
    expected = {
        "disjoint": [nll(model, stream[t // 16 * 16:t + 1]) for t in range(len(stream)) if t % 16],
        "strided": [nll(model, stream[max(0, t // 8 - 1) * 8:t + 1]) for t in range(1, len(stream))],
        "document": [],
    }
    for text in TEXTS:
        ids = TOKENIZER.encode("\0" + text)
        for t in range(1, len(ids)):  # 16 ids before the last target of a window; the last window is full
            last = min(-(-t // 16) * 16, len(ids) - 1)
            expected["document"].append(nll(model, ids[max(0, last - 16):t + 1]))
    tokens = {"disjoint": len(stream), "strided": len(stream), "document": len(stream) - 3}
    for protocol, losses in expected.items():
        mean = np.mean(losses)
        text = mean * tokens[protocol]
        assert found[f"{protocol}: nats per token"] == pytest.approx(mean, rel=1e-12)
        assert found[f"{protocol}: perplexity per token"] == pytest.approx(math.exp(mean), rel=1e-12)
        assert found[f"{protocol}: perplexity per word"] == pytest.approx(math.exp(text / 11), rel=1e-12)
        assert found[f"{protocol}: perplexity per byte"] == pytest.approx(math.exp(text / 53), rel=1e-12)
        assert found[f"{protocol}: bits per byte"] == pytest.approx(text / 53 / math.log(2), rel=1e-12)


def test_completions_have_the_loss_of_training(model):
    for documents in (PAIRS, [Document("", [(text, True), (END, True)], text) for text in TEXTS]):
        for longest in (16, 9):
            encoded, _ = encode(TOKENIZER, documents, longest)
            expected = evaluate.mean_nll(model, encoded.sequences, encoded.sequences.loss_masks)
            corpus = tasks.Corpus.of_documents(TOKENIZER, documents, longest)
            task = tasks.Perplexity(corpus, ("completion",), 16, 8)
            found = measured(task, model)
            assert found["completion: nats per token"] == pytest.approx(expected.nll, rel=1e-12)
            assert found["completion: perplexity per token"] == pytest.approx(expected.ppl, rel=1e-12)
            assert len(found) == 2
            assert task.predicted["completion"] == task.tokens["completion"] == encoded.targets == expected.tokens


def test_a_corpus_of_documents_is_one_of_their_texts(model):
    texts = ["".join("\0" if text is END else text for text, _ in document.segments[:-1]) for document in PAIRS]
    one, other = tasks.Corpus.of_documents(TOKENIZER, [*PAIRS, Document("", [], "")], 16), tasks.Corpus.of_texts(
        TOKENIZER, texts)
    np.testing.assert_array_equal(one.stream, other.stream)
    assert [ids.tolist() for ids in one.documents] == [ids.tolist() for ids in other.documents]
    assert (one.words, one.bytes) == (other.words, other.bytes - 1)
    streamed = [Document("", [(Stream(iter([text[:3], text[3:]])), True), (END, True)], "") for text in texts]
    np.testing.assert_array_equal(tasks.Corpus.of_documents(TOKENIZER, streamed, 16).stream, one.stream)
    assert len(tasks.Corpus.of_documents(TOKENIZER, PAIRS, 16, limit=1).documents) == 1
    with pytest.raises(ConfigError, match="nothing to predict: all texts are blank"):
        tasks.Corpus.of_documents(TOKENIZER, [Document("", [], "")], 16)


def test_protocols_share_a_pass(model):
    """If the stride divides the context, strided has all full windows of disjoint."""
    corpus = tasks.Corpus.of_texts(TOKENIZER, TEXTS)
    both = tasks.Perplexity(corpus, ("disjoint", "strided"), 16, 8)
    strided = tasks.Perplexity(corpus, ("strided",), 16, 8)
    disjoint = tasks.Perplexity(corpus, ("disjoint",), 16, 8)
    assert (len(disjoint.items), len(strided.items)) == (4, 6)
    assert len(both.items) == 7  # all except the last window of disjoint, which is short
    assert both.predicted == {"disjoint": 52, "strided": 55}
    assert measured(both, model) == pytest.approx(measured(strided, model) | measured(disjoint, model), rel=1e-12)


def test_keys_are_of_what_is_asked():
    corpus = tasks.Corpus.of_texts(TOKENIZER, ["abcdefgh" * 8])
    keys = [[task.key(i) for i in range(len(task.items))] for task in (
        tasks.Perplexity(corpus, ("disjoint",), 8, 4), tasks.Perplexity(corpus, ("strided",), 8, 4))]
    assert len(set(keys[0])) == 1  # the same window eight times
    assert not set(keys[0]) & set(keys[1])  # another protocol has another record


def test_a_corpus_of_wikitext():
    """Words and bytes are counted in the file. The documents are its pages, detokenised. The stream is the file."""
    file = " \n = A = \n \n x , y \n = B = \n z \n"
    corpus = tasks.Corpus.of_wikitext(TOKENIZER, file)
    assert [TOKENIZER.decode(ids) for ids in corpus.documents] == ["\0 = A =\n\nx, y ", "\0 = B =\nz\n"]
    assert TOKENIZER.decode(corpus.stream) == "\n\n = A = \n\n\n\n\n x , y \n\n\n = B = \n\n\n z \n"
    assert (corpus.words, corpus.bytes) == (14, 29)
    first = tasks.Corpus.of_wikitext(TOKENIZER, file, limit=1)
    assert (len(first.documents), first.words) == (1, 8)


def test_nothing_to_predict():
    corpus = tasks.Corpus.of_texts(TOKENIZER, [""])
    with pytest.raises(ConfigError, match="nothing to predict"):
        tasks.Perplexity(corpus, ("disjoint",), 16, 8)


@pytest.mark.parametrize("task", [
    tasks.Perplexity(tasks.Corpus.of_documents(TOKENIZER, PAIRS, 16), tasks.Perplexity.PROTOCOLS, 16, 8),
    questions.MultipleChoice(TOKENIZER, [questions.Question(text, [" this", " or", " neither"], 0)
                                         for text in ("in time", "saves", "nine", "1,000", "of them")]),
    questions.Answers(TOKENIZER, [questions.Prompt([text], ["x"]) for text in ("in time", "saves", "nine", "1,000")],
                      {"exact match": (metrics.exact_match_rows, metrics.mean_score)}, max_new_tokens=4),
], ids=lambda task: type(task).__name__)
def test_an_evaluation_that_goes_on_has_the_bytes_of_one_that_was_not_interrupted(task, tmp_path, monkeypatch):
    """In float32, another batch gives other last digits. The file may end after any line, or inside a line."""
    monkeypatch.setattr(evaluate, "BATCH_TOKENS", 30)
    monkeypatch.setattr(questions, "TOGETHER", 3)
    model, path = npgpt.GPT2(CONFIG, seed=1), tmp_path / "answers.jsonl"
    groups = task.groups(model)
    assert len(groups) > 1 and max(map(len, groups)) > 1
    whole = complete(Records(path), "", task, model)
    lines = path.read_bytes().splitlines(keepends=True)
    for done in range(len(lines)):
        for torn in (b"", lines[done][:20]):
            path.write_bytes(b"".join(lines[:done]) + torn)
            assert complete(Records(path), "", task, model) == whole
            assert path.read_bytes() == b"".join(lines)
