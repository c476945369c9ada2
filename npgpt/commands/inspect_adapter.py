"""Print what a LoRA adapter does to each layer: size, directions and rank of its update, and what may be wrong with it.
"""

import json
import math
import re

import npgpt
from npgpt.commands import models
from npgpt.commands.flags import Flag, Parser, filled, path
from npgpt.files.atomic import replacing
from npgpt.inspection import anatomy
from npgpt.runtime.errors import ConfigError, FileError, printable

SHOWN = 6  # singular values on a line
MOST = 5   # modules that moved most
FLAGS = [
    Flag("adapter", "folder of the adapter", filled, metavar="DIR"),
    Flag("--model", "the base model: hub id, folder or 'tiny'; the updates are then compared with its weights "
         "(default: only the adapter's files are read)", metavar="NAME"),
    models.REVISION,
    Flag("--compare", "folder of another adapter: print how similar the two are", filled, metavar="DIR"),
    Flag("--json", "print one JSON object", bool, False),
    Flag("--plot", "draw norms by layer and spectra into this .png, .svg or .pdf (needs matplotlib: pip install "
         "'.[plot]')", path, metavar="FILE"),
]


def parse_arguments(argv):
    parser = Parser(__doc__, FLAGS)
    args = parser.parse(argv)
    models.check_revision(parser, args)
    return args


def main(args):
    model = args.model and npgpt.GPT2.from_pretrained(args.model, args.revision)
    found = anatomy.dissect(args.adapter, model)
    other = args.compare and anatomy.dissect(args.compare)
    alike = anatomy.compare(found, other) if other else None
    if args.plot:
        plot(found, args.plot, args.adapter)
    if args.json:
        print(json.dumps(as_json(args, found, alike)))
        return
    lines = [*describe(args.adapter, found), "", *table(found), "", *summary(found)]
    if alike is not None:
        lines += ["", *comparison(args, found, other, alike)]
    print("\n".join(map(printable, lines)))  # a tensor's name may hold anything, also a new line
    if args.plot:
        print(f"plot       {args.plot}")


def describe(folder, found):
    fields = found.fields
    base = fields["base_model_name_or_path"]
    yield (f"adapter    {folder}: LoRA for {repr(base) if base else 'an unnamed base'}, {found.numbers:,} numbers in "
           f"{', '.join(found.dtypes)}, {found.size / 1e6:,.2f} MB")
    words = [f"rank {fields['r']}", f"alpha {fields['lora_alpha']:g}"]
    for field, text in (("rank_pattern", "and other ranks"), ("alpha_pattern", "and other alphas"),
                        ("use_rslora", "rsLoRA"), ("use_dora", "DoRA"), ("lora_bias", "lora_bias")):
        words += [text] if fields[field] else []
    words += [f"dropout {fields['lora_dropout']:g}", f"bias {fields['bias']}"]
    yield f"           {', '.join(words)}"
    kinds = {}
    for module in found.parts:
        layer, kind = re.fullmatch(r"(?:h\.(\d+)\.)?(.+)", module).groups()
        kinds.setdefault(kind, []).append(layer)
    on = [kind if layers == [None] else f"{kind} of {len(layers)} layers" for kind, layers in kinds.items()]
    yield f"           on {', '.join(on) or 'nothing'}"
    if found.others:
        keys = [re.sub(r"^base_model\.model\.(transformer\.)?", "", key) for key in found.others]
        yield f"           and {len(keys)} other tensors: {anatomy.few(keys)}"


def table(found):
    wide = max((len(module) for module in found.parts), default=0)
    based = any(part.relative is not None for part in found.parts.values())
    more = "   of |W|  amplifies" if based else ""
    yield f"{'':{wide}}  rank  alpha   scale     |A|     |B|    |sBA|{more}  eff. rank  singular values of sBA"
    for module, part in found.parts.items():
        line = (f"{module:{wide}}  {part.rank:4}  {part.alpha:5g}  {part.scale:6.4g}  {part.norm_A:6.4g}  "
                f"{part.norm_B:6.3g}  ")
        if part.update is None:
            yield line + "   not finite"
            continue
        if part.relative is not None:
            more = f"  {part.relative:7.2%}  {part.amplification:8.1f}x"
        values = " ".join(f"{value:.2g}" for value in part.update.values[:SHOWN])
        dots = " .." if len(part.update.values) > SHOWN else ""
        yield (f"{line}{part.update.norm:7.4g}{more}  {part.update.effective_rank:9.1f}  {values}{dots}"
               f"{'  DoRA' if part.with_dora else ''}")


def summary(found):
    sized = {module: part for module, part in found.parts.items() if part.update is not None}

    def moved(module):
        part = sized[module]
        return part.update.norm if part.relative is None else part.relative

    most = sorted(sized, key=moved, reverse=True)[:MOST]
    based = all(sized[module].relative is not None for module in most)
    amounts = [f"{module} ({moved(module):{'.2%' if based else '.3g'}})" for module in most]
    yield f"moved most {', '.join(amounts)}{' of |W|' if based else ''}"
    layers = {}
    for module in sized:
        layer = re.match(r"h\.(\d+)\.", module)
        if layer:
            layers[int(layer[1])] = layers.get(int(layer[1]), 0) + sized[module].update.norm ** 2
    largest = max(layers.values(), default=0)
    for layer, square in sorted(layers.items()):
        bar = "#" * round(40 * (square / largest) ** 0.5) if largest else ""
        yield f"{'layers' if layer == min(layers) else '':10} h.{layer:<3} {square ** 0.5:8.3g} {bar}"
    for word, sentences in (("refused", found.refused), ("hazards", found.hazards)):
        for i, sentence in enumerate(sentences or ["none"]):
            yield f"{'' if i else word:10} {sentence}"


def comparison(args, found, other, alike):
    yield (f"compared with {args.compare}: how much of the smaller subspace lies in the other (1: the same), what "
           "random ones have, and the cosine of the updates")
    wide = max((len(module) for module in alike), default=0)
    yield f"{'':{wide}}  reads  random  writes  random  cosine"
    for module, each in alike.items():
        yield (f"{module:{wide}}  {each.reads:5.3f}  {each.reads_by_chance:6.3f}  {each.writes:6.3f}  "
               f"{each.writes_by_chance:6.3f}  {each.cosine:6.3f}")
    for folder, one, two in ((args.adapter, found, other), (args.compare, other, found)):
        alone = [module for module in one.parts if module not in two.parts]
        if alone:
            yield f"only in {folder}: {anatomy.few(alone)}"


def as_json(args, found, alike):
    modules = {}
    for module, part in found.parts.items():
        modules[module] = {name: value if isinstance(value, bool) or value is None or math.isfinite(value) else None
                           for name, value in part._asdict().items() if name != "update"}
        if part.update is not None:
            modules[module] |= {"norm_update": part.update.norm, "effective_rank": part.update.effective_rank,
                                "singular_values": part.update.values.tolist()}
    value = {"adapter": args.adapter, "model": args.model, "fields": found.fields, "bytes": found.size,
             "numbers": found.numbers, "dtypes": found.dtypes, "modules": modules,
             "others": {key: list(shape) for key, shape in found.others.items()},
             "refused": found.refused, "hazards": found.hazards}
    if alike is not None:
        value["compare"] = {"adapter": args.compare, "modules": {name: each._asdict() for name, each in alike.items()}}
    return value


def plot(found, path, title):
    """Draw |sBA| by layer, one line for each kind of module, with the singular values beside it, into `path`."""
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install '.[plot]'") from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    kinds = {}
    for module, part in found.parts.items():
        match = re.fullmatch(r"h\.(\d+)\.(.+)", module)
        if part.update is not None:
            kinds.setdefault(match[2] if match else module, {})[int(match[1]) if match else 0] = part
    based = all(part.relative is not None for parts in kinds.values() for part in parts.values())
    figure, (norms, spectra) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for i, (kind, parts) in enumerate(kinds.items()):
        sizes = [part.relative if based else part.update.norm for part in parts.values()]
        norms.plot(list(parts), sizes, "o-", color=f"C{i}", label=kind)
        for layer, part in parts.items():
            values = part.update.values[: part.update.support]
            spectra.plot(range(1, len(values) + 1), values, ".-", color=f"C{i}", alpha=0.6, linewidth=1,
                         label=None if layer != min(parts) else kind)
    norms.set(xlabel="layer", ylabel="|sBA| / |W|" if based else "|sBA|", title="size of the updates", ylim=(0, None))
    spectra.set(xlabel="place of the singular value, the largest first", ylabel="singular value of sBA (log scale)",
                yscale="log", title="singular values, one line for each layer")
    for axes in (norms, spectra):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    if kinds:
        norms.legend()
        spectra.legend()
    figure.suptitle(title)
    with replacing(path) as temporary:
        try:
            figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150)
        except ValueError as error:
            raise FileError(f"cannot draw {path}: its name must end in .png, .svg or .pdf") from error
    pyplot.close(figure)

