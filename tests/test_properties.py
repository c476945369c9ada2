"""What must hold for any input: how the work is cut up changes no result, no token sees a later one, and whatever is
saved comes back bit for bit.

About bounds. Cutting work up differently changes the order in which numbers are added, and which of BLAS's kernels adds
them. Two orders of n terms give sums at most 2 (n - 1) eps apart, in units of the sum of the terms' magnitudes (Higham
2002, section 4.2). Sums here have some 10 to 300 terms, an output or gradient passes through about twenty of them one
after another, and rounding errors cancel as often as they add up: 100 eps in units of the largest entry is far above
what is seen (about 10) and far below any mistake. That the same number of eps holds in float32 and in float64, which
differ by a factor of 500 million, is what shows that nothing but rounding is left.
"""

import contextlib
import functools
import importlib
import shutil
from unittest import mock

import numpy as np
import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from npgpt import (
    GPT2,
    AdamW,
    Batch,
    GPT2Config,
    LoraConfig,
    Tensor,
    Tokenizer,
    add_lora,
    backward,
    load_adapter,
    ops,
    save_adapter,
)
from npgpt.adapters.stack import updates
from npgpt.checking.gradcases import randomise, small_model
from npgpt.evaluation.evaluate import mean_nll
from npgpt.files import safetensors
from npgpt.files.tokenizer import END_OF_TEXT
from npgpt.runtime import threads, tiles
from npgpt.runtime.shares import row_blocks
from npgpt.training.run import Run
from npgpt.training.train import loss_and_gradients

ROUNDING = 100  # eps; see above
LAYER_NORM = importlib.import_module("npgpt.ops.layer_norm")  # in the package, this name is the function's

dtypes = st.sampled_from([np.float32, np.float64])
seeds = st.integers(0, 2**32)


def examples(percent):
    """Percent of the examples that other tests have: see conftest.py."""
    return settings(max_examples=percent * settings.default.max_examples // 100)


def assert_equal_but_rounding(actual, expected, scale=None, what="values"):
    """Equal up to ROUNDING eps of `actual`'s dtype, in units of `scale` or of the largest entry."""
    assert actual.shape == expected.shape, what
    scale = np.abs(expected).max(initial=0) if scale is None else scale
    error = np.abs(np.subtract(actual, expected, dtype=np.float64)).max(initial=0)
    assert error <= ROUNDING * np.finfo(actual.dtype).eps * scale, f"{what} differ by {error:.3g}, of {scale:.3g}"


@functools.cache
def model_of(kind, dtype, **fields):
    """A model with weights of order 0.2, made once: "full", or "lora" with every linear layer adapted."""
    model = small_model(dtype, **fields)
    if kind == "lora":
        add_lora(model, LoraConfig(r=3, target_modules="all-linear"))
        randomise(model.trainable_parameters(), seed=1)
    return model


@st.composite
def sequences_and_masks(draw):
    """Sequences of 1 to 8 tokens, and masks that leave at least one target."""
    draws = np.random.default_rng(draw(seeds))
    lengths = draw(st.lists(st.integers(1, 8), min_size=1, max_size=9))
    sequences = [draws.integers(0, 13, length) for length in lengths]
    masks = [draws.random(length) < 0.7 for length in lengths]
    assume(any(mask[1:].any() for mask in masks))
    return sequences, masks


# How the work is cut up


@examples(60)
@given(sequences_and_masks(), st.sampled_from(["full", "lora"]), dtypes, st.randoms(use_true_random=False),
       st.integers(1, 6), st.integers(1, 4))
def test_a_batch_is_its_sequences_in_any_order_pieces_and_threads(drawn, kind, dtype, random, micro_batches, n_threads):
    """Loss and gradients are the means over all targets, taken one sequence at a time."""
    model, sequences = model_of(kind, dtype), list(zip(*drawn, strict=True))
    total = sum(int(mask[1:].sum()) for _, mask in sequences)
    expected_loss, expected, scale = 0.0, {}, {}
    for sequence, mask in sequences:
        alone = Batch.from_sequences([sequence], [mask])
        if alone.n_targets:
            loss = model.loss(alone)
            expected_loss += float(loss.data) * alone.n_targets / total
            for tensor, gradient in backward(loss, alone.n_targets / total).items():
                expected[tensor] = expected.get(tensor, 0) + gradient.astype(np.float64)
                scale[tensor] = scale.get(tensor, 0) + np.abs(gradient).max()

    random.shuffle(sequences)
    batch = Batch.from_sequences(*map(list, zip(*sequences, strict=True)))
    with threads.workers(n_threads):
        loss, grads = loss_and_gradients(model, batch, micro_batches=micro_batches)
    assert_equal_but_rounding(np.asarray(loss, dtype), np.asarray(expected_loss), what="losses")
    names = {tensor: name for name, tensor in model.trainable_parameters().items()}
    assert grads.keys() == expected.keys() == names.keys()
    for tensor, gradient in grads.items():
        assert_equal_but_rounding(gradient, expected[tensor], scale[tensor], names[tensor])


@examples(40)
@given(sequences_and_masks(), dtypes, st.randoms(use_true_random=False), st.integers(1, 40))
def test_an_evaluation_is_of_its_sequences_in_any_order_and_groups(drawn, dtype, random, batch_tokens):
    model, sequences = model_of("full", dtype), list(zip(*drawn, strict=True))
    alone = [Batch.from_sequences([sequence], [mask]) for sequence, mask in sequences]
    losses = [float(model.loss(batch).data) * batch.n_targets for batch in alone if batch.n_targets]
    random.shuffle(sequences)
    result = mean_nll(model, *map(list, zip(*sequences, strict=True)), batch_tokens=batch_tokens)
    assert result.tokens == sum(batch.n_targets for batch in alone)
    assert_equal_but_rounding(np.asarray(result.nll, dtype), np.asarray(sum(losses) / result.tokens))


@examples(25)
@given(st.integers(1, 300), st.integers(1, 150), st.integers(1, 150), st.integers(2, 4), dtypes, seeds)
def test_products_do_not_depend_on_the_workers_nor_on_the_threads_of_blas(rows, n_in, n_out, n_threads, dtype, seed):
    def results():
        leaves = leaves_of(dtype, seed, (rows, n_in), (n_in, n_out), (n_out,))
        return outputs_and_gradients(ops.linear(*leaves), leaves, seed)

    with threads.blas_threads(1):
        expected = results()
    for many in (threads.blas_threads, threads.workers):
        with many(n_threads):
            for actual, array in zip(results(), expected, strict=True):
                assert_equal_but_rounding(actual, array)


def leaves_of(dtype, seed, *shapes):
    draws = np.random.default_rng(seed)
    return [Tensor(draws.standard_normal(shape).astype(dtype), trainable=True) for shape in shapes]


def outputs_and_gradients(output, leaves, seed):
    """The output and the gradients of the leaves, for a random gradient arriving."""
    dy = np.random.default_rng(seed + 1).standard_normal(output.shape).astype(output.dtype)
    grads = backward(output, dy)
    return [output.data, *(grads[leaf] for leaf in leaves)]


@examples(40)
@given(st.integers(1, 40) | st.integers(250, 600), st.integers(1, 45), st.integers(1, 12), st.integers(1, 5),
       st.floats(0, 0.9), dtypes, seeds)
def test_the_loss_does_not_depend_on_its_blocks_and_threads(rows, block_rows, tokens, n_threads, untargeted, dtype,
                                                            seed):
    draws = np.random.default_rng(seed)
    targets = np.where(draws.random(rows) < untargeted, -100, draws.integers(0, 11, rows))
    targets[draws.integers(rows)] = 10

    def results(*blocks):
        """Loss and gradients, those at the hidden states also where the table is frozen."""
        leaves = leaves_of(dtype, seed, (rows, 5), (11, 5))
        both = outputs_and_gradients(ops.cross_entropy(*leaves, targets, *blocks), leaves, seed)
        leaves[1].trainable = False
        return both + outputs_and_gradients(ops.cross_entropy(*leaves, targets, *blocks), leaves[:1], seed)

    # Where the model is sure of its targets, the loss is a small difference of logits and softmax - onehot one of
    # numbers up to 1: rounding is that of these terms, which then go through the products with the leaves and 1 / M.
    hidden, weight = (np.abs(leaf.data).max() for leaf in leaves_of(dtype, seed, (rows, 5), (11, 5)))
    dy = abs(np.random.default_rng(seed + 1).standard_normal())
    gradients = dy / np.count_nonzero(targets != -100)
    scales = 5 * hidden * weight, gradients * weight, gradients * hidden
    scales += scales[:2]
    expected = results(rows)
    for blocks in ((), (block_rows, tokens)):
        with threads.workers(n_threads):
            for actual, array, terms in zip(results(*blocks), expected, scales, strict=True):
                assert_equal_but_rounding(actual, array, max(terms, np.abs(array).max()))


@examples(60)
@given(st.lists(st.integers(1, 12) | st.integers(120, 260), min_size=1, max_size=4), st.integers(1, 270),
       st.integers(1, 40_000), st.integers(1, 3), dtypes, seeds)
def test_attention_does_not_depend_on_its_blocks_tiles_and_threads(lengths, block, scores, n_threads, dtype, seed):
    def results():
        leaves = leaves_of(dtype, seed, (sum(lengths), 18))
        return outputs_and_gradients(ops.causal_attention(*leaves, np.array(lengths), 3, 0.7), leaves, seed)

    with threads.blas_threads(1):
        expected = results()
    with query_blocks_of(block), mock.patch.object(tiles, "TILE", scores), threads.workers(n_threads):
        for actual, array in zip(results(), expected, strict=True):
            assert_equal_but_rounding(actual, array)


def query_blocks_of(size):
    """Let attention take its queries in blocks of `size`."""
    return mock.patch.object(tiles, "QUERIES", size)


@examples(40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3000), dtypes, seeds)
def test_rows_do_not_depend_on_the_block_they_are_in(rows, width, block_bytes, dtype, seed):
    """Bit for bit: each row's own numbers are added in one order, whichever rows are beside it."""
    shapes = {"layer_norm": [(rows, width), (width,), (width,)]}
    for name in ("gelu_new", "gelu", "relu", "silu", "layer_norm"):
        leaves = leaves_of(dtype, seed, *shapes.get(name, [(rows, width)]))
        results = []
        for size in (1 << 18, block_bytes):
            with row_blocks_of(size):
                output = getattr(ops, name)(*leaves, *([1e-5] if name == "layer_norm" else []))
                results.append(outputs_and_gradients(output, leaves, seed))
        for actual, expected in zip(*results, strict=True):
            np.testing.assert_array_equal(actual, expected, name)


@contextlib.contextmanager
def row_blocks_of(size):
    """Let element-wise work take its rows in blocks of `size` bytes."""
    blocks = functools.partial(row_blocks, block_bytes=size)
    with mock.patch("npgpt.ops.activations.row_blocks", blocks), mock.patch.object(LAYER_NORM, "row_blocks", blocks):
        yield


# Causality


@examples(60)
@given(st.integers(2, 16), st.integers(1, 15), st.integers(1, 3), st.integers(1, 20), dtypes, seeds)
def test_a_later_token_never_changes_an_earlier_row(length, past, others, block, dtype, seed):
    """With the tokens after `past`, and the other sequences, replaced: bit for bit, since each row's numbers are added
    in the same order, and what a row cannot see is added to it as 0. Cut off instead: up to rounding."""
    assume(past < length)
    model, draws = model_of("full", dtype, n_positions=16), np.random.default_rng(seed)
    ids = draws.integers(0, 13, (1 + others, length))
    changed = draws.integers(0, 13, ids.shape)
    changed[0, :past] = ids[0, :past]
    changed[0, past:] = (ids[0, past:] + draws.integers(1, 13, length - past)) % 13  # every one is another
    with query_blocks_of(block):
        before, after = model.logits(ids)[0], model.logits(changed)[0]
        np.testing.assert_array_equal(after[:past], before[:past])
        assert (after[past:] != before[past:]).any(axis=1).all()
        assert_equal_but_rounding(model.logits(ids[0, :past]), before[:past])


@examples(60)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=3), st.integers(1, 20),
       st.sampled_from([1e-3, 1.0, 1e3, 1e6]), dtypes, seeds)
def test_attention_never_looks_ahead(lengths, block, scale, dtype, seed):
    """Also where what it may not see outweighs what it may by far."""
    draws = np.random.default_rng(seed)
    (qkv,), changed = leaves_of(dtype, seed, (sum(lengths), 12)), np.empty((sum(lengths), 12), dtype)
    past = np.concatenate([np.arange(length) < draws.integers(length + 1) for length in lengths])
    changed[:] = np.where(past[:, None], qkv.data, scale * draws.standard_normal(qkv.shape))
    with query_blocks_of(block):
        before, after = (ops.causal_attention(x, np.array(lengths), 2, scale) for x in (qkv, Tensor(changed)))
    np.testing.assert_array_equal(after.data[past], before.data[past])


@examples(60)
@given(st.lists(st.integers(2, 12), min_size=1, max_size=3), st.integers(1, 20), st.booleans(), dtypes, seeds)
def test_no_gradient_reaches_a_later_token(lengths, block, dropout, dtype, seed):
    """The loss of one token depends on its own and the earlier tokens of its sequence: everywhere else, the gradient is
    exactly 0. Each token has an id, and so a row of wte, to itself; the head is another table."""
    model = model_of("full", dtype, n_positions=12, vocab_size=36, tie_word_embeddings=False)
    draws = np.random.default_rng(seed)
    sequences = np.split(draws.permutation(36)[: sum(lengths)], np.cumsum(lengths)[:-1])
    chosen = draws.integers(len(lengths))
    row = draws.integers(lengths[chosen] - 1)
    masks = [np.zeros(length) for length in lengths]
    masks[chosen][row + 1] = 1  # the target that row predicts
    with query_blocks_of(block):
        loss = model.loss(Batch.from_sequences(sequences, masks), draws if dropout else None)
        grads = backward(loss)
    reached = np.flatnonzero(grads[model.wte.weight].any(axis=1))
    positions = np.flatnonzero(grads[model.wpe.weight].any(axis=1))
    past = sequences[chosen][: row + 1]
    if dropout:  # which may cut the paths from a token, all of them
        assert set(reached) <= set(past)
        assert set(positions) <= set(range(row + 1))
    else:
        assert reached.tolist() == sorted(past.tolist())
        assert positions.tolist() == list(range(row + 1))


# What is saved comes back


def bits(draws, shape, dtype):
    """An array of random bits: infinities, NaNs with and without payload, zeros of either sign, all may occur."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return draws.integers(0, 2, shape).astype(bool)
    count = int(np.prod(shape))
    array = np.frombuffer(draws.bytes(count * dtype.itemsize), dtype).copy()
    if dtype.kind == "f" and count:
        array[draws.integers(count)] = draws.choice([np.nan, np.inf, -np.inf, -0.0])
    return array.reshape(shape)


def fill(tensors, draws):
    """Fill tensors with any finite numbers, among them -0 and the smallest there are: a model may hold no others."""
    for tensor in tensors.values():
        drawn = bits(draws, tensor.shape, tensor.dtype)
        tensor.data = np.where(np.isfinite(drawn), drawn, tensor.dtype.type(0))


def assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, array in actual.items():
        assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape), name
        assert array.tobytes() == expected[name].tobytes(), name


def arrays(tensors):
    return {name: tensor.data for name, tensor in tensors.items()}


LAYOUTS = {
    "as it is": lambda array: array,
    "transposed": lambda array: array.T,
    "backwards": lambda array: array[..., ::-1] if array.ndim else array,
    "every other": lambda array: np.repeat(array, 2, axis=0)[::2] if array.ndim else array,
    "of the other byte order": lambda array: array.astype(array.dtype.newbyteorder()),
    "repeated in place": lambda array: np.broadcast_to(array, (2, *array.shape)),
    "read-only": lambda array: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("saved")


@examples(80)
@given(st.lists(st.tuples(st.sampled_from(sorted(safetensors.CODES, key=str)), st.lists(st.integers(0, 4), max_size=4),
                          st.sampled_from(sorted(LAYOUTS))), max_size=6), seeds)
def test_tensors_of_any_bits_and_layout(folder, drawn, seed):
    draws = np.random.default_rng(seed)
    tensors = {f"{i} {layout}": LAYOUTS[layout](bits(draws, shape, dtype))
               for i, (dtype, shape, layout) in enumerate(drawn)}
    safetensors.write(folder / "once", tensors)
    found = safetensors.read(folder / "once")
    assert_same_bits(found, {name: tensors[name].astype(tensors[name].dtype.newbyteorder("<")) for name in found})
    assert found.keys() == tensors.keys()
    safetensors.write(folder / "twice", found)
    assert (folder / "twice").read_bytes() == (folder / "once").read_bytes()


@examples(40)
@given(st.integers(1, 3), st.integers(1, 3), st.none() | st.integers(1, 9), st.booleans(),
       st.sampled_from(sorted(ops.ACTIVATIONS)), st.floats(1e-12, 1), dtypes, seeds)
def test_a_model(folder, n_layer, n_head, n_inner, tied, activation, epsilon, dtype, seed):
    config = GPT2Config(vocab_size=7, n_positions=3, n_embd=2 * n_head, n_layer=n_layer, n_head=n_head, n_inner=n_inner,
                        tie_word_embeddings=tied, activation_function=activation, layer_norm_epsilon=epsilon)
    model = GPT2(config, seed=None, dtype=dtype)
    fill(model.parameters(), np.random.default_rng(seed))
    model.save_pretrained(folder / "model" / "once")
    loaded = GPT2.from_pretrained(folder / "model" / "once", dtype=dtype)
    assert loaded.config == config
    assert_same_bits(arrays(loaded.parameters()), arrays(model.parameters()))
    loaded.save_pretrained(folder / "model" / "twice")
    assert_same_files(folder / "model" / "twice", folder / "model" / "once")


def assert_same_files(one, other):
    contents = [{path.name: path.read_bytes() for path in each.iterdir()} for each in (one, other)]
    assert contents[0] == contents[1]


@examples(40)
@given(st.integers(1, 9), st.floats(1e-300, 1e300) | st.integers(1, 10**300), st.floats(0, 1, exclude_max=True),
       st.sets(st.sampled_from(["c_attn", "attn.c_proj", "mlp.c_fc", "h.1.mlp.c_proj"]), min_size=1), seeds)
def test_an_adapter(folder, r, alpha, dropout, targets, seed):
    """In float32, in which PEFT's files are."""
    config = LoraConfig(r, alpha, dropout, sorted(targets))
    model = add_lora(small_model(np.float32), config)
    fill(model.trainable_parameters(), np.random.default_rng(seed))
    save_adapter(model, folder / "adapter" / "once")
    loaded = load_adapter(small_model(np.float32), folder / "adapter" / "once")
    assert_same_bits(arrays(loaded.trainable_parameters()), arrays(model.trainable_parameters()))
    read = updates(loaded)["h.1.attn.c_attn"].config if "c_attn" in targets else None
    assert read is None or (read.r, read.lora_alpha, read.lora_dropout) == (r, alpha, dropout)
    save_adapter(loaded, folder / "adapter" / "twice")
    assert_same_files(folder / "adapter" / "twice", folder / "adapter" / "once")


@examples(40)
@given(st.sampled_from(["full", "lora"]), st.integers(0, 2**40) | st.sampled_from([2**53 + 1, 2**63 - 1]),
       dtypes, seeds)
def test_the_state_of_an_optimiser(folder, kind, steps, dtype, seed):
    def start():
        model = small_model(dtype)
        if kind == "lora":
            add_lora(model, LoraConfig(r=2))
        return model, AdamW(model.trainable_parameters())

    (model, opt), draws = start(), np.random.default_rng(seed)
    for moments in (opt.m, opt.v):
        moments |= {name: bits(draws, array.shape, dtype) for name, array in moments.items()}
    if kind == "full" or dtype == np.float32:  # an adapter is also written in float32, which not all bits fit
        fill(opt.params, draws)
    opt.steps = steps
    run = Run(folder / f"run {kind}")
    shutil.rmtree(run.folder, ignore_errors=True)
    run.write_config({})
    run.save_checkpoint(model, opt)

    _, again = start()
    run.load_checkpoint(steps, again)
    assert again.steps == steps
    assert_same_bits(arrays(again.params), arrays(opt.params))
    assert_same_bits(again.m, opt.m)
    assert_same_bits(again.v, opt.v)


# Text

PIECES = [END_OF_TEXT, "<|end", "the", " ", "  ", "\t", "\n", "\r\n", "\0", "don't", "42", "e\u0301", "\u00e9",
          "\u00a0", "\u200d", "\ufeff", "\ufffd", "\ufffe", "\U0001f469\u200d\U0001f4bb", "\U0010ffff"]
texts = st.text() | st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@examples(50)
@given(st.lists(texts, max_size=4), st.integers(257, 300), texts)
def test_text_of_any_byte_level_vocabulary(folder, corpus, size, text):
    """Whatever the merges are: those of a corpus drawn here. The text comes back from the tokenizer, and from its file
    the same ids."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.train_from_iterator(corpus, tokenizers.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=[END_OF_TEXT]))
    tokenizer = Tokenizer(made)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    tokenizer.save(folder / "tokenizer")
    np.testing.assert_array_equal(Tokenizer.from_pretrained(folder / "tokenizer").encode(text), ids)


@examples(200)
@given(texts)
def test_text_of_the_embedded_model(text):
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


@functools.cache
def tiny_tokenizer():
    return Tokenizer.from_pretrained("tiny")
