"""The shape of the house: imports point one way, and the library keeps its hands to itself."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import npgpt
from npgpt.train import TrainConfig

PACKAGE = Path(npgpt.__file__).parent
FILES = {path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path for path in PACKAGE.rglob("*.py")}

# The reading order. A module imports only from those before it, so what stands before `ops` knows no operation and what
# stands before `gpt2` no model. A new module is put in its place here.
ORDER = """
    errors files seeding html metrics names
    bootstrap wikitext
    batch threads machine memory hub safetensors pickles torchfile tokenizer
    data.readers data.parquet data.sources data.fields data.chats data.templates
    data.documents data.encoding data.order data.preview data
    autograd
    ops.shares ops.dropout ops.primitives ops.activations ops.attention ops.cross_entropy ops.embedding ops.layer_norm
    ops.linear ops.dora ops
    optim nn gpt2 lora_config lora_init updates tables lora combine
    checkpoint vocabulary adapter_config adapter loralib mlx nanogpt
    warpers sampling decoding generate beam evaluate tasks records
    merge gguf spectrum anatomy
    inside inside_page
    gradcheck gradcases
    pretrained questions harness
    run train fit estimate forecast report
    __init__
""".split()


def name_of(path):
    """The dotted name in ORDER of a module file: npgpt/ops/__init__.py is ops, npgpt/__init__.py is __init__."""
    return path if path == "__init__" else path.removesuffix(".__init__")


def at_module_level(tree):
    """Yield the nodes that run on import: all but those inside functions."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from at_module_level(node)


def imported(nodes):
    """Yield the dotted name of every module that `nodes` import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import: {ast.unparse(node)}"
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            ours = [name for name in submodules if name.removeprefix("npgpt.") in ORDER]
            yield from ours or [node.module]


@pytest.fixture(params=FILES)
def module(request):
    return request.param, ast.parse(FILES[request.param].read_text(encoding="utf-8"))


def test_imports_point_one_way(module):
    name, tree = name_of(module[0]), module[1]
    assert name in ORDER, f"put {name} in its place in ORDER"
    for other in imported(at_module_level(tree)):
        if other.split(".")[0] == "npgpt":
            other = other.removeprefix("npgpt").removeprefix(".") or "__init__"
            assert ORDER.index(other) < ORDER.index(name), f"{name} imports {other}, which stands above it"


def test_there_is_no_torch(module):
    """At any level, in any function."""
    roots = {name.split(".")[0] for name in imported(ast.walk(module[1]))}
    assert not roots & {"torch", "transformers", "peft", "jax", "tensorflow", "scipy"}


def test_nothing_is_printed_and_no_global_state_is_touched(module):
    allowed = {"Generator", "Philox", "SeedSequence", "default_rng"}
    for node in ast.walk(module[1]):
        code = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""
        assert code not in {"print", "sys.argv", "sys.stdout", "sys.stderr"}
        if code.startswith("np.random."):
            assert code.removeprefix("np.random.") in allowed, f"{code} is a global random state"


def test_importing_npgpt_imports_neither_hub_nor_tokenizers():
    """They are slow to load, and a model in memory needs neither."""
    code = ("import sys, npgpt; print(*sorted({'huggingface_hub', 'tokenizers', 'tqdm', 'torch', 'safetensors'}"
            " & set(sys.modules)))")
    run = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_public_names():
    assert sorted(npgpt.__all__) == sorted([
        "AdamW", "Batch", "GPT2", "GPT2Config", "LoraConfig", "NpgptError", "Tensor", "Tokenizer", "add_lora",
        "add_weighted_adapter", "backward", "beam_search", "clip_grad_norm", "delete_adapter", "disable_adapter",
        "generate", "generate_batch", "gradcheck", "load_adapter", "merge_lora", "mixed_batch", "perplexity",
        "save_adapter", "set_adapter", "stream", "train_step",
    ])
    assert all(hasattr(npgpt, name) for name in npgpt.__all__)


@pytest.mark.parametrize("function, defaults", [
    (npgpt.GPT2, {"seed": 0, "dtype": np.float32}),
    (npgpt.LoraConfig, {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ("c_attn",),
                        "exclude_modules": None, "layers_to_transform": None, "layers_pattern": None,
                        "rank_pattern": None, "alpha_pattern": None,
                        "use_rslora": False, "use_dora": False, "lora_bias": False, "bias": "none",
                        "modules_to_save": None, "init_lora_weights": True, "trainable_token_indices": None}),
    (npgpt.AdamW, {"lr": 3e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "ratios": None}),
    (npgpt.train_step, {"max_grad_norm": 1.0, "rng": None, "threads": None, "micro_batches": 1}),
    (TrainConfig, {"epochs": 3, "max_steps": None, "batch_size": 4, "batch_tokens": None, "accumulate": 1,
                   "lr": 3e-4, "warmup": 0, "schedule": "linear", "grad_clip": 1.0, "seed": 0, "threads": None}),
    (npgpt.generate, {"max_new_tokens": 50, "temperature": 1.0, "top_k": None, "top_p": None, "seed": None,
                      "eos_id": None, "stop_strings": (), "tokenizer": None, "context": "whole"}),
    (npgpt.perplexity, {"context": 1024, "stride": None}),
    (npgpt.save_adapter, {"name": "default", "save_embedding_layers": "auto"}),
    (npgpt.load_adapter, {"name": "default", "trainable": True}),
    (npgpt.set_adapter, {"trainable": True}),
])
def test_public_defaults(function, defaults):
    parameters = inspect.signature(function).parameters.values()
    assert {p.name: p.default for p in parameters if p.default is not p.empty} == defaults
