"""What an adapter contains, read from its files: the size of each update, its directions, and possible problems.

The files are enough. With the base model, each update is also compared with the weight that it changes.
"""

import math
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from npgpt.adapters.expressions import compiled
from npgpt.adapters.matching import matches, named, whole_name
from npgpt.adapters.peft import load_adapter, make_room, read_weights
from npgpt.adapters.peft_config import CONFIG_FILE, PEFT_DEFAULTS, read_fields, refusals, without_wrappers
from npgpt.adapters.stack import delete_adapter
from npgpt.files import hub
from npgpt.files.names import parameter_name
from npgpt.inspection.spectrum import Spectrum, amplification, overlap, spectrum
from npgpt.lora import adapted_layers
from npgpt.runtime.errors import ConfigError, FormatError, NpgptError

# h.0.attn.c_attn.lora_A.weight; the adapter's name may stand before the last part
KEY = re.compile(
    r"(?P<module>.+?)\.lora_(?:embedding_)?(?P<part>A|B|magnitude_vector)"
    r"(?:\.(?!(?:weight|bias)$)[^.]+)?(?:\.(?:weight|(?P<bias>bias)))?"
)
TABLES = ("wte", "lm_head")  # one matrix if they are tied


class Part(NamedTuple):
    """The update of one module.

    rank, alpha, scale  of this module, after rank_pattern and alpha_pattern
    norm_A, norm_B      Frobenius norms
    update              Spectrum of scale * B A; None if A or B holds NaN or infinity
    with_dora           whether DoRA's magnitude vector scales the weight
    relative            |W' - W| / |W|, Frobenius norms, where W' is the weight with the adapter; None without the base
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
    """The contents of an adapter.

    fields   dict: its configuration, with PEFT's defaults for missing fields
    parts    dict module name -> Part
    others   dict key -> shape, for the tensors outside low-rank updates: biases, modules that were saved whole
    weights  Path of the file of tensors
    size     bytes of that file
    numbers  how many numbers its tensors have
    dtypes   the dtypes of its tensors
    refused  list of str: why `load_adapter` refuses the adapter; empty if it accepts the adapter
    hazards  list of str: other things that a user should know
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

    model  the base, a GPT2 without adapters, unchanged at the end; None: read only the files

    Raises FileError if a file cannot be read, FormatError if it holds no LoRA adapter.
    """
    place = hub.adapter_folder(folder)
    fields = read_fields(place / CONFIG_FILE)
    if fields.get("peft_type") != "LORA":
        raise FormatError(f"{place / CONFIG_FILE}: peft_type = {fields.get('peft_type')!r}: expected 'LORA'")
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
             for module, tensors in sorted(factors.items(), key=_order_in_the_model)}
    refused = list(refusals(fields))
    if model is not None and not refused:
        refused = _against_base(place, model, parts)
    hazards = [*_hazards_of_configuration(fields, factors), *_hazards_of_tensors(arrays, factors, parts),
               *_hazards_of_files(arrays, others, path)]
    numbers, dtypes = sum(array.size for array in arrays.values()), sorted({str(a.dtype) for a in arrays.values()})
    return Anatomy(fields, parts, others, path, path.stat().st_size, numbers, dtypes, refused, hazards)


def _check(path, fields):
    """Raise FormatError if a field that `dissect` computes with has an unusable value."""
    alpha = fields["lora_alpha"]
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise FormatError(f"{path}: lora_alpha = {alpha!r}: it must be a number")
    for field in ("rank_pattern", "alpha_pattern"):
        pattern = fields[field] or {}
        if not isinstance(pattern, dict) or not all(type(value) in (int, float) for value in pattern.values()):
            raise FormatError(f"{path}: {field} = {pattern!r}: it must map names to numbers")
        try:
            for key in pattern:
                compiled(key)
        except ConfigError as error:
            raise FormatError(f"{path}: {field}: {error}") from error


def _order_in_the_model(item):
    """Return a sort key for (module name, ...): the place of the module in the model."""
    layer = re.match(r"h\.(\d+)\.", item[0])
    return (int(layer[1]), item[0]) if layer else (-1 if item[0].startswith("w") else math.inf, item[0])


def _part(where, fields, module, tensors):
    """Return the Part of one module. Raises FormatError if A and B do not fit each other."""
    A, B = tensors.get("A"), tensors.get("B")
    if A is None or B is None or A.ndim != 2 or B.ndim != 2 or len(A) != B.shape[1] or not A.size or not B.size:
        shapes = " and ".join("none" if each is None else str(each.shape) for each in (A, B))
        raise FormatError(f"{where}: A and B have the shapes {shapes}; expected matrices (R, in) and (out, R)")
    rank = len(A)
    alpha = next((fields["alpha_pattern"][key] for key in _matching(fields["alpha_pattern"], module)),
                 fields["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if fields["use_rslora"] else rank)
    finite = np.isfinite(A).all() and np.isfinite(B).all()
    update = spectrum(A, B, scale) if finite else None
    return Part(rank, alpha, scale, *(float(np.linalg.norm(each.astype(np.float64))) for each in (A, B)), update,
                "magnitude_vector" in tensors, None, None)


def _against_base(place, model, parts):
    """Add to `parts` what only the base can tell. Returns a list: the reason for refusing the adapter, or nothing."""
    name, count = "dissected", model.config.vocab_size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the hazards say the same
            make_room(model, place)
            load_adapter(model, place, name, trainable=False)
    except NpgptError as error:
        return [str(error)]
    for module, layer in adapted_layers(model).items():
        part, W = parts.get(module), layer.base_layer.weight.data
        if part is None or part.update is None:  # a module that was saved whole; NaN
            continue
        size = float(np.linalg.norm(W.astype(np.float64)))
        moved = np.linalg.norm(layer.merged().weight.data - W) if part.with_dora else part.update.norm
        W = W.T if module == "lm_head" else W  # the head is (out, in), as a table of tokens is
        parts[module] = part._replace(relative=float(moved) / size, amplification=amplification(part.update, W))
    delete_adapter(model, name)
    model.resize_token_embeddings(count)  # make_room may have added tokens
    return []


def _matching(pattern, module):
    """Return the keys of a rank_pattern or alpha_pattern that match the module by PEFT's rule. The first one counts."""
    return [key for key in pattern or () if matches({key: True}, whole_name(module))]


def _hazards_of_configuration(fields, factors):
    """Yield the hazards in the configuration."""
    if not fields["base_model_name_or_path"]:
        yield "it does not name its base model, so no program can notice that it is used with another one"
    if fields["use_rslora"]:
        yield "rsLoRA: its scale is alpha / sqrt(r); a program that does not know use_rslora uses alpha / r"
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
                yield (f"{field}: {several} match {module}; PEFT takes the first in the file, which is sorted by the "
                       "alphabet; in training another one may have been the first")
                break


def _hazards_of_tensors(arrays, factors, parts):
    """Yield the hazards in the tensors."""
    wrong = [key for key, array in arrays.items() if not np.isfinite(array).all()]
    if wrong:
        yield f"NaN or infinity in {few(wrong)}"
    still = [module for module, part in parts.items() if part.norm_B == 0 or part.norm_A == 0]
    if still:
        yield f"A or B is all zero, so the update changes nothing, in {few(still)}"
    large = [module for module, part in parts.items() if part.relative is not None and part.relative > 1]
    if large:
        yield f"the update is larger than the weight itself in {few(large)}"
    tables = [module for module in TABLES if module in factors]
    if tables:
        yield (f"it changes {' and '.join(tables)}: in GPT-2 the token table and the head are one matrix; a merge must "
               "split it in two (merge.py does; PEFT's merge_and_unload adds the update to both uses)")


def _hazards_of_files(arrays, others, path):
    """Yield the hazards of the file: its keys, its size and its format."""
    tables = [key for key in others if re.search(r"\b(wte|lm_head)\b.*\bweight$", key)]
    if tables:
        megabytes = sum(arrays[key].nbytes for key in tables) / 1e6
        yield f"{megabytes:,.1f} MB of its file are whole matrices of the token table or the head: {few(tables)}"
    if not any("transformer." in key for key in arrays):
        yield ("its keys have no 'transformer.', so it was made for GPT-2 without a head: PEFT loads none of it into "
               "GPT2LMHeadModel and only prints a warning")
    if path.suffix == ".bin":
        yield f"{path.name} is a pickle: a program that unpickles it runs the code in it (npgpt does not unpickle)"


def few(names):
    """Return the first three names as text, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class Likeness(NamedTuple):
    """How similar two adapters' updates of one module are.

    reads, writes    `spectrum.overlap` of the directions that they read from (in) and write to (out)
    reads_by_chance  overlap of two random subspaces of these ranks; writes_by_chance likewise
    cosine           of the two updates as vectors: 1 same direction, 0 unrelated, -1 opposite
    """

    reads: float
    reads_by_chance: float
    writes: float
    writes_by_chance: float
    cosine: float


def compare(one, two):
    """Return a dict module name -> Likeness of two Anatomies, for the modules that both change.

    Raises FormatError if the adapters are for models of different sizes.
    """
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
