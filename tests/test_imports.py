"""The shape of the house: imports point one way, and the library keeps its hands to itself."""

import ast
import functools
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import npgpt
from npgpt.training.train import TrainConfig

PACKAGE = Path(npgpt.__file__).parent
FILES = {path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path for path in PACKAGE.rglob("*.py")}
FOLDERS = sorted({path.parent for path in FILES.values()})


@functools.cache
def listed(folder):
    """The files and folders that the docstring of folder/__init__.py lists, in its order, without endings.

    This is the order of reading, and of imports: a module imports only from what stands above it.
    """
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    return re.findall(r"^    (\w+)(?:\.py|/)  ", docstring, re.MULTILINE)


def place(module):
    """Where a module of FILES stands: its place in the list of each folder on the way to it; __init__ is the last."""
    places, folder = [], PACKAGE
    for part in module.split("."):
        places.append([*listed(folder), "__init__"].index(part))
        folder = folder / part
    return places


def imported(nodes):
    """Yield the dotted name of every module that `nodes` import; those of npgpt by their names in FILES."""
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import: {ast.unparse(node)}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if ours(name) else node.module for name in names]
        else:
            continue
        yield from (ours(name) or name for name in names)


def ours(name):
    """The name in FILES of the module or folder with the dotted name `name`, or None."""
    package, _, inner = name.partition(".")
    keys = [inner, f"{inner}.__init__".removeprefix(".")] if package == "npgpt" else []
    return next((key for key in keys if key in FILES), None)


@pytest.fixture(params=FILES)
def module(request):
    return request.param, ast.parse(FILES[request.param].read_text(encoding="utf-8"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_each_folder_lists_what_is_in_it(folder):
    inside = {path.stem for path in folder.iterdir() if path.suffix == ".py" or any(path.glob("*.*"))}
    assert sorted(listed(folder)) == sorted(inside - {"__init__", "__pycache__"})


def test_imports_point_one_way(module):
    name, tree = module
    others = {other for other in imported(ast.walk(tree)) if other in FILES}
    if name.startswith("commands."):
        others -= {"__init__"}  # they use the public names, as any user does
    wrong = {other for other in others if place(other) >= place(name)}
    assert not wrong, f"{name} imports from below it: {sorted(wrong)}"


def test_there_is_no_torch(module):
    """At any level, in any function."""
    roots = {name.split(".")[0] for name in imported(ast.walk(module[1]))}
    assert not roots & {"torch", "transformers", "peft", "jax", "tensorflow", "scipy"}


def test_nothing_is_printed_and_no_global_state_is_touched(module):
    """The command lines alone print."""
    name, tree = module
    allowed = {"Generator", "Philox", "SeedSequence", "default_rng"}
    for node in ast.walk(tree):
        code = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""
        assert name.startswith("commands.") or code not in {"print", "sys.argv", "sys.stdout", "sys.stderr"}
        if code.startswith("np.random."):
            assert code.removeprefix("np.random.") in allowed, f"{code} is a global random state"


def run(code):
    """What another process prints."""
    return subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True,
                          check=True).stdout


def test_the_public_names_import_neither_hub_nor_tokenizers():
    """They are slow to load, and a model in memory needs neither."""
    assert run("import sys; from npgpt import *; print(*sorted({'huggingface_hub', 'tokenizers', 'tqdm', 'torch', "
               "'safetensors'} & set(sys.modules)))").split() == []


def test_importing_npgpt_imports_nothing():
    """So that a command can handle Ctrl-C before the imports that take time."""
    assert run("import sys; before = set(sys.modules); import npgpt; print(*sorted(set(sys.modules) - before))").split(
        ) == ["npgpt"]


MODULES = [name for name in listed(PACKAGE) if ours(f"npgpt.{name}") and name != "__main__"]


@pytest.mark.parametrize("name", [*npgpt.__all__, *MODULES])
def test_names_are_there_after_a_plain_import(name):
    """Public names, and the modules and rooms of the list."""
    assert run(f"import npgpt; print(npgpt.{name} is not None, {name!r} in dir(npgpt))") == "True True\n"


def test_a_public_name_is_what_its_module_has():
    for module, names in npgpt._PUBLIC.items():
        for name in names:
            assert getattr(npgpt, name) is getattr(importlib.import_module(f"npgpt.{module}"), name)


def test_other_names_are_missing():
    for name in ("nothing", "_nothing", "__wrapped__", "finetune", "np"):
        assert not hasattr(npgpt, name), name
        with pytest.raises(AttributeError, match=f"module 'npgpt' has no attribute '{name}'"):
            getattr(npgpt, name)
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from npgpt import nothing  # noqa: F401


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
    (npgpt.AdamW, {"lr": 3e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "ratios": None,
                   "undecayed": ()}),
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


@pytest.mark.parametrize("name", ["NO_ARITHMETIC", "SLOW"])
def test_what_the_lists_of_tests_name_is_there(name):
    """The lists in conftest.py name tests by how their paths begin; one that is moved would silently leave them."""
    from tests import conftest
    paths = [path.relative_to(conftest.TESTS).as_posix() for path in conftest.TESTS.rglob("test_*.py")]
    assert [start for start in getattr(conftest, name) if not any(path.startswith(start) for path in paths)] == []
