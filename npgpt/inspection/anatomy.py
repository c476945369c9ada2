"""What an adapter is, read off its files: how large each update is, in which directions, and what can go wrong with it.

The files suffice. With the base at hand each update is set against the weight it changes.
"""

import math
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from npgpt.adapters.matching import matches, named, whole_name
from npgpt.adapters.peft import load_adapter, make_room, read_weights
from npgpt.adapters.peft_config import CONFIG_FILE, PEFT_DEFAULTS, refusals, without_wrappers
from npgpt.adapters.stack import delete_adapter
from npgpt.files.atomic import read_json
from npgpt.files.names import parameter_name
from npgpt.inspection.spectrum import Spectrum, amplification, overlap, spectrum
from npgpt.lora import adapted_layers
from npgpt.runtime.errors import FormatError, NpgptError

# h.0.attn.c_attn.lora_A.weight, with or without the adapter's name
KEY = re.compile(
    r"(?P<module>.+?)\.lora_(?:embedding_)?(?P<part>A|B|magnitude_vector)"
    r"(?:\.(?!(?:weight|bias)$)[^.]+)?(?:\.(?:weight|(?P<bias>bias)))?"
)
TABLES = ("wte", "lm_head")  # one matrix, where they are tied


class Part(NamedTuple):
    """The update of one module.

    rank, alpha, scale  of this module, after rank_pattern and alpha_pattern
    norm_A, norm_B      Frobenius norms
    update              the Spectrum of scale * B A; None where A or B holds NaN or infinity
    with_dora           whether the weight is renormalised by a magnitude vector
    relative            |W' - W| / |W|, Frobenius norms, W' the weight under the adapter; None without the base
    amplification       see `spectrum.amplification`; None without the base
    """

    rank: int
    alpha: float
    scale: float
    norm_A: float
    norm_B: float
    update: Spectrum | None
    with_dora: bool
    relative: float | None
    amplification: float | None


class Anatomy(NamedTuple):
    """An adapter, taken apart.

    fields   dict: its configuration, with PEFT's defaults for what is absent
    parts    dict module name -> Part
    others   dict key -> shape of the tensors that belong to no low-rank update: biases, modules saved whole
    weights  Path of the file of tensors; size: its bytes; numbers: how many numbers are in it; dtypes: of them
    refused  list of str: what npgpt cannot honour, so that `load_adapter` refuses the adapter
    hazards  list of str: what else its user should know
    """

    fields: dict
    parts: dict
    others: dict
    weights: Path
    size: int
    numbers: int
    dtypes: list
    refused: list
    hazards: list


def dissect(folder, model=None):
    """Return the Anatomy of the adapter in `folder`.

    model  the base, a GPT2 without adapters, which is left as it is; None: only the files are read

    Raises FileError where a file cannot be read, FormatError where it holds no LoRA adapter.
    """
    place = Path(folder)
    fields = read_json(place / CONFIG_FILE)
    if fields.get("peft_type") != "LORA":
        raise FormatError(f"{place / CONFIG_FILE}: peft_type = {fields.get('peft_type')!r}, where 'LORA' is expected")
    fields = without_wrappers(PEFT_DEFAULTS | fields)
    _check(place / CONFIG_FILE, fields)
    path, arrays = read_weights(place)
    factors, others = {}, {}
    for key, array in arrays.items():
        match = KEY.fullmatch(parameter_name(key))
        if match:
            factors.setdefault(match["module"], {})[match["part"] + (".bias" if match["bias"] else "")] = array
        else:
            others[key] = array.shape

    parts = {module: _part(f"{path}: {module}", fields, module, tensors)
             for module, tensors in sorted(factors.items(), key=_place)}
    refused = list(refusals(fields))
    if model is not None and not refused:
        refused = _against_base(place, model, parts)
    hazards = [*_of_configuration(fields, factors), *_of_tensors(arrays, factors, parts),
               *_of_files(arrays, others, path)]
    numbers, dtypes = sum(array.size for array in arrays.values()), sorted({str(a.dtype) for a in arrays.values()})
    return Anatomy(fields, parts, others, path, path.stat().st_size, numbers, dtypes, refused, hazards)


def _check(path, fields):
    """Raise FormatError where a field that is computed with cannot be."""
    alpha = fields["lora_alpha"]
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise FormatError(f"{path}: lora_alpha = {alpha!r}: it must be a number")
    for field in ("rank_pattern", "alpha_pattern"):
        pattern = fields[field] or {}
        if not isinstance(pattern, dict) or not all(type(value) in (int, float) for value in pattern.values()):
            raise FormatError(f"{path}: {field} = {pattern!r}: it must map names to numbers")
        try:
            for key in pattern:
                re.compile(key)
        except (re.error, OverflowError, RecursionError) as error:
            raise FormatError(f"{path}: {field}: {key!r} is not a regular expression: {error}") from error


def _place(item):
    """Where in the model the module of an item (module name, ..) is."""
    layer = re.match(r"h\.(\d+)\.", item[0])
    return (int(layer[1]), item[0]) if layer else (-1 if item[0].startswith("w") else math.inf, item[0])


def _part(where, fields, module, tensors):
    """Return the Part of one module. Raises FormatError unless its A and B belong together."""
    A, B = tensors.get("A"), tensors.get("B")
    if A is None or B is None or A.ndim != 2 or B.ndim != 2 or len(A) != B.shape[1] or not A.size or not B.size:
        shapes = " and ".join("none" if each is None else str(each.shape) for each in (A, B))
        raise FormatError(f"{where} must have matrices A (R, in) and B (out, R); it has {shapes}")
    rank = len(A)
    alpha = next((fields["alpha_pattern"][key] for key in _matching(fields["alpha_pattern"], module)),
                 fields["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if fields["use_rslora"] else rank)
    finite = np.isfinite(A).all() and np.isfinite(B).all()
    update = spectrum(A, B, scale) if finite else None
    return Part(rank, alpha, scale, *(float(np.linalg.norm(each.astype(np.float64))) for each in (A, B)), update,
                "magnitude_vector" in tensors, None, None)


def _against_base(place, model, parts):
    """Complete `parts` with what the base tells; return what is refused, as a list of one sentence or none."""
    name, count = "dissected", model.config.vocab_size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is among the hazards
            make_room(model, place)
            load_adapter(model, place, name, trainable=False)
    except NpgptError as error:
        return [str(error)]
    for module, layer in adapted_layers(model).items():
        part, W = parts.get(module), layer.base_layer.weight.data
        if part is None or part.update is None:  # a module saved whole; NaN
            continue
        size = float(np.linalg.norm(W.astype(np.float64)))
        moved = np.linalg.norm(layer.merged().weight.data - W) if part.with_dora else part.update.norm
        W = W.T if module == "lm_head" else W  # which is (out, in), as a table of tokens is
        parts[module] = part._replace(relative=float(moved) / size, amplification=amplification(part.update, W))
    delete_adapter(model, name)
    model.resize_token_embeddings(count)  # as it was before there was room for the adapter's tokens
    return []


def _matching(pattern, module):
    """Return the keys of a rank_pattern or alpha_pattern that match the module, in PEFT's way: the first holds."""
    return [key for key in pattern or () if matches({key: True}, whole_name(module))]


def _of_configuration(fields, factors):
    """Yield hazards that the configuration holds."""
    if not fields["base_model_name_or_path"]:
        yield "it does not name its base, so that no program can tell whether it is put on another"
    if fields["use_rslora"]:
        yield "rsLoRA: its scale is alpha / sqrt(r); a program that does not know use_rslora takes alpha / r instead"
    targets = fields["target_modules"]
    for target in targets if isinstance(targets, list) else ():
        if not named([whole_name(module) for module in factors], target):
            yield f"target {target!r} has no tensors in the file: it matched nothing"
    for field in ("rank_pattern", "alpha_pattern"):
        pattern = fields[field] or {}
        for key in pattern:
            if not any(key in _matching(pattern, module) for module in factors):
                yield f"{field}: {key!r} matches no module of the file"
        for module in factors:
            keys = _matching(pattern, module)
            if len({pattern[key] for key in keys}) > 1:
                several = " and ".join(f"{key!r} ({pattern[key]:g})" for key in keys)
                yield (f"{field}: {several} match {module}; PEFT takes the first of the file, whose order is "
                       "the alphabet's, whichever came first in training")
                break


def _of_tensors(arrays, factors, parts):
    """Yield hazards that the tensors hold."""
    wrong = [key for key, array in arrays.items() if not np.isfinite(array).all()]
    if wrong:
        yield f"NaN or infinity in {few(wrong)}"
    still = [module for module, part in parts.items() if part.norm_B == 0 or part.norm_A == 0]
    if still:
        yield f"A or B is all zero, so that nothing changes, in {few(still)}"
    large = [module for module, part in parts.items() if part.relative is not None and part.relative > 1]
    if large:
        yield f"the update is larger than the weight itself in {few(large)}"
    tables = [module for module in TABLES if module in factors]
    if tables:
        yield (f"it changes {' and '.join(tables)}: GPT-2's token table and head are one matrix, of which merging must "
               "make two (merge.py does; PEFT's merge_and_unload adds the update to both uses)")


def _of_files(arrays, others, path):
    """Yield hazards of what is in the file and what the file is."""
    tables = [key for key in others if re.search(r"\b(wte|lm_head)\b.*\bweight$", key)]
    if tables:
        megabytes = sum(arrays[key].nbytes for key in tables) / 1e6
        yield f"{megabytes:,.1f} MB of it are whole matrices of the token table or the head: {few(tables)}"
    if not any("transformer." in key for key in arrays):
        yield ("its keys have no 'transformer.', as of an adapter for GPT-2 without its head: PEFT puts none of it on "
               "GPT2LMHeadModel, and only warns")
    if path.suffix == ".bin":
        yield f"{path.name} is a pickle: a program that unpickles it runs what is in it (npgpt does not unpickle)"


def few(names):
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class Likeness(NamedTuple):
    """How alike two adapters' updates of one module are.

    reads, writes    `spectrum.overlap` of the directions they read from (in) and write to (out)
    reads_by_chance  what two random subspaces of these ranks have; writes_by_chance likewise
    cosine           of the two updates as vectors: 1 the same but for size, 0 unrelated, -1 opposite
    """

    reads: float
    reads_by_chance: float
    writes: float
    writes_by_chance: float
    cosine: float


def compare(one, two):
    """Return dict module name -> Likeness of two Anatomies, for the modules that both change."""
    found = {}
    for module in one.parts.keys() & two.parts.keys():
        a, b = (each.parts[module].update for each in (one, two))
        if a is None or b is None or not a.support or not b.support:
            continue
        if len(a.left) != len(b.left) or len(a.right) != len(b.right):
            raise FormatError(f"{one.weights} and {two.weights} are for models of different sizes: {module}")
        i, j = a.support, b.support
        U = a.left[:, :i].T @ b.left[:, :j]
        V = a.right[:, :i].T @ b.right[:, :j]
        inner = a.values[:i] @ (U * V) @ b.values[:j]
        found[module] = Likeness(overlap(V), max(i, j) / len(a.right), overlap(U), max(i, j) / len(a.left),
                                 float(inner / (a.norm * b.norm)))
    return {module: found[module] for module in one.parts if module in found}
