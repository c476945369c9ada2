"""Shared by the tests."""

import html.parser
import pathlib
import tracemalloc

import hypothesis
import numpy as np
import pytest

from npgpt import Tensor, backward

# Where nothing depends on how BLAS rounds, or where that is allowed for (READMEs): all other tests have the marker
# `arithmetic`, and .ci/run repeats those with each of BLAS's kernels and several numbers of threads.
NO_ARITHMETIC = ("data/", "files/test_atomic.py", "files/test_hub.py", "files/test_names.py", "files/test_pickles.py",
                 "files/test_tokenizer.py", "files/test_torchfile.py", "fuzz/", "hub/", "kills/", "mutation/",
                 "official/", "parity/", "commands/test_bad_input.py", "commands/test_cli.py",
                 "commands/test_console.py", "commands/test_convert", "commands/test_flags.py",
                 "commands/test_harness", "commands/test_inspect_adapter.py", "commands/test_memory",
                 "commands/test_sweep.py",
                 "training/test_estimate.py", "runtime/test_memory.py", "evaluation/test_wikitext.py",
                 "test_imports.py", "test_readmes.py", "test_texts.py")
# What takes most of the time: tests that start processes, and others of many seconds. They have the marker `slow`;
# `pytest -m "not slow"` runs all others, in under a minute.
SLOW = ("files/test_torchfile.py", "fuzz/test_fuzz.py", "hub/", "kills/", "mutation/", "official/", "parity/",
        "commands/", "adapters/test_expressions.py", "test_properties.py", "test_readmes.py", "test_real_model.py",
        "training/test_estimate.py")
TESTS = pathlib.Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        path = item.path.relative_to(TESTS).as_posix()
        if not path.startswith(NO_ARITHMETIC):
            item.add_marker("arithmetic")
        if path.startswith(SLOW):
            item.add_marker("slow")


# A busy machine is no failure, so there is no deadline. By default each run draws the same examples; with
# --hypothesis-profile explore, other examples each time, and thirty times as many.
hypothesis.settings.register_profile("npgpt", deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=3000, print_blob=True)
hypothesis.settings.load_profile("npgpt")


@pytest.fixture
def leaves():
    """leaves(*shapes): trainable float64 leaves, N(0, 1)."""
    draw = np.random.default_rng(0)

    def make(*shapes):
        return [Tensor(draw.standard_normal(shape), trainable=True) for shape in shapes]

    return make


@pytest.fixture
def memory():
    """memory(work): (result of work(), bytes it holds in the end, bytes it held at the most), counted by Python."""
    def measure(work):
        tracemalloc.start()
        try:
            return work(), *tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    return measure


@pytest.fixture
def assert_close():
    """assert_close(actual, expected, bound): equal up to `bound` times the largest entry.

    What is left where large terms cancel has no correct digits, so an error relative to each entry would say nothing.
    """

    def check(actual, expected, bound=1e-12, what="values"):
        assert np.shape(actual) == np.shape(expected), what
        error, scale = np.abs(np.subtract(actual, expected)).max(), np.abs(expected).max()
        assert error <= bound * scale, f"{what} differ by {error:.3g}, where the largest is {scale:.3g}"

    return check


@pytest.fixture
def assert_same(assert_close):
    """assert_same(f, g, tensors): two functions of the same leaves have equal outputs and equal gradients."""

    def check(f, g, tensors, bound=1e-12):
        ours, expected = f(*tensors), g(*tensors)
        assert_close(ours.data, expected.data, bound, "outputs")
        dy = np.random.default_rng(1).standard_normal(ours.shape)
        ours, expected = backward(ours, dy), backward(expected, dy)
        assert ours.keys() == expected.keys() == set(tensors)
        for i, tensor in enumerate(tensors):
            assert_close(ours[tensor], expected[tensor], bound, f"gradients of argument {i}")

    return check


@pytest.fixture
def room():
    """room(optimizer, off, eps): name -> how far apart, for each weight, the step that AdamW just took may lead two
    computations of it. Their gradients are `off` apart, in units of an array's largest; `eps` is that of the weights.

    Adam's m and sqrt(v) are then no further apart, d at the most, and m / sqrt(v), which does not exceed 1, about
    2 d / sqrt(v): much where a gradient is small beside its array's largest, but never more than the lengths of two
    steps, 2 lr. Storing the weight adds half an eps of it on either side.
    """
    def after(optimizer, off, eps):
        found = {}
        for name, tensor in optimizer.params.items():
            root = np.sqrt(optimizer.v[name] / (1 - optimizer.betas[1] ** optimizer.steps))
            steps = 2 * optimizer.lr * np.minimum(off * root.max() / (root + optimizer.eps), 1)
            found[name] = steps + eps * np.abs(tensor.data)
        return found

    return after


class HtmlReader(html.parser.HTMLParser):
    """tags: [(name, attributes), ...]; text: everything between them. Fails where a tag is not closed by its own."""

    def __init__(self, markup):
        super().__init__()
        self.tags, self.text, self._open = [], "", []
        self.feed(markup)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, text):
        self.text += text


@pytest.fixture
def read_html():
    """read_html(markup): its tags and its text, all tags closed."""
    return HtmlReader
