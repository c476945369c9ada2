"""The kinds of files to fuzz: how each is damaged, how npgpt reads it, and what must be true afterwards."""

import codecs
import itertools
import json
import re
import zipfile

import corrupt
import numpy as np
import tokenizers

try:
    import pyarrow.parquet
except ImportError:
    pyarrow = None

from npgpt import GPT2, AdamW, GPT2Config, LoraConfig, Tokenizer, add_lora, data, load_adapter, merge_lora, save_adapter
from npgpt.files import safetensors
from npgpt.files.tokenizer import END_OF_TEXT
from npgpt.runtime.errors import ConfigError
from npgpt.training.run import Run

CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=11, n_positions=6, bos_token_id=None, eos_token_id=0)
BLANK = " \t\r\n"  # JSON's white space
UNSURE = "unsure"  # for a file that may be loaded or refused
TEXT = "the cat sat on the mat; the hat that the cat had sat on the mat.\n"


class Subject:
    """One kind of file, in a folder of its own. Each file that is written takes a new place on the disk, since arrays
    of the one before may still be mapped."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(parents=True)

    def damage(self, rng):
        """Write files, corrupted as drawn from `rng`."""
        raise NotImplementedError

    def load(self):
        """Read the files with npgpt."""
        raise NotImplementedError

    def check(self, loaded):
        """Assert that the result of `load` is what the files say, and that it works."""
        raise NotImplementedError

    def check_refusal(self):
        """Assert that the refusal was right, and that it left nothing behind."""

    def put(self, name, content):
        (self.folder / name).unlink(missing_ok=True)
        (self.folder / name).write_bytes(content)


class Safetensors(Subject):
    """A file of tensors, by itself."""

    def damage(self, rng):
        self.content = corrupt.corrupt_tensors_file(rng, corrupt.random_tensors_file(rng))
        self.put("x.safetensors", self.content)

    def load(self):
        return safetensors.read(self.folder / "x.safetensors")

    def check(self, loaded):
        assert_same(loaded, held(self.content))
        assert all(array.flags.aligned and not array.flags.writeable for array in loaded.values())

    def check_refusal(self):
        assert held(self.content) is None, "a valid file was refused"


class Config(Subject):
    """config.json of a model with good weights."""

    def __init__(self, folder):
        super().__init__(folder)
        self.config = CONFIG.to_dict() | {"architectures": ["GPT2LMHeadModel"], "task_specific_params": {"a": {"b": 1}}}
        self.sizes = [name for name, value in self.config.items() if type(value) in (int, float, bool)]
        self.weights = arrays(GPT2(CONFIG, seed=1))
        self.put("model.safetensors", corrupt.tensors_file(self.weights))

    def damage(self, rng):
        content = corrupt.corrupted_json(rng, self.config)
        if rng.random() < 0.3:
            value = corrupt.Raw(rng.choice(corrupt.NUMBERS))
            content = corrupt.spell(corrupt.Object((self.config | {rng.choice(self.sizes): value}).items())).encode()
        self.put("config.json", content)

    def load(self):
        return GPT2.from_pretrained(self.folder)

    def check(self, model):
        assert_same(arrays(model), self.weights)
        assert_usable(model, self.folder)


class Weights(Subject):
    """model.safetensors of a model with a good config.json, which may ask for something else."""

    def __init__(self, folder):
        super().__init__(folder)
        self.tensors = arrays(GPT2(CONFIG, seed=1))

    def damage(self, rng):
        config, tensors = CONFIG.to_dict(), dict(self.tensors)
        if rng.random() < 0.1:
            config["tie_word_embeddings"] = False
        if rng.random() < 0.1:
            tensors["lm_head.weight"] = tensors["wte.weight"]
        if rng.random() < 0.3:
            tensors = {f"transformer.{name}": array for name, array in tensors.items()}
        if rng.random() < 0.1:
            pretend(rng, config, tensors)
        for _ in range(rng.choice([0, 1, 1, 2, 3])):
            corrupt_tensors(rng, tensors)
        self.content = corrupt.tensors_file(tensors)
        if rng.random() < 0.3:
            self.content = corrupt.corrupt_tensors_file(rng, self.content)
        self.put("model.safetensors", self.content)
        self.put("config.json", json.dumps(config).encode())

    def load(self):
        return GPT2.from_pretrained(self.folder)

    def check(self, model):
        stored = {re.sub(r"^((model|gpt|module|transformer)\.)+", "", k): a for k, a in held(self.content).items()}
        masks = [name for name in stored if re.fullmatch(r"h\.\d+\.attn\.(masked_)?bias", name)]
        stored = {name: array for name, array in stored.items() if name not in masks}
        if model.config.tie_word_embeddings and "lm_head.weight" in stored:
            head = stored.pop("lm_head.weight")
            np.testing.assert_array_equal(stored.setdefault("wte.weight", head), head)
        assert_same(arrays(model), {name: single(array) for name, array in stored.items()})
        assert_usable(model, self.folder)


class TorchWeights(Subject):
    """pytorch_model.bin of a model with a good config.json."""

    def __init__(self, folder):
        super().__init__(folder)
        self.tensors = arrays(GPT2(CONFIG, seed=1))
        self.put("config.json", json.dumps(CONFIG.to_dict()).encode())

    def damage(self, rng):
        content, self.whole = corrupt_torch(rng, self.tensors)
        self.put("pytorch_model.bin", content)

    def load(self):
        return GPT2.from_pretrained(self.folder)

    def check(self, model):
        if self.whole:
            assert_same(arrays(model), self.tensors)
        assert_usable(model, self.folder)

    def check_refusal(self):
        assert not self.whole, "a valid file was refused"


class Index(Subject):
    """model.safetensors.index.json and three shards; one of the shards may be corrupted."""

    def __init__(self, folder):
        super().__init__(folder)
        weights = arrays(GPT2(CONFIG, seed=1))
        parts = {f"model-{i + 1}-of-3.safetensors": list(weights)[i::3] for i in range(3)}
        self.shards = {shard: corrupt.tensors_file({n: weights[n] for n in names}) for shard, names in parts.items()}
        weight_map = {name: shard for shard, names in parts.items() for name in names}
        self.index = {"metadata": {"total_size": 7000}, "weight_map": weight_map}
        self.put("config.json", json.dumps(CONFIG.to_dict()).encode())

    def damage(self, rng):
        index, self.contents = json.dumps(self.index).encode(), dict(self.shards)
        shard = rng.choice(list(self.shards))
        if rng.random() < 0.7:
            index = corrupt.corrupted_json(rng, self.index)
        elif rng.random() < 0.8:
            self.contents[shard] = corrupt.corrupt_tensors_file(rng, self.shards[shard])
        else:
            self.contents[shard] = rng.choice(list(self.shards.values()))
        for name, content in self.contents.items():
            self.put(name, content)
        if rng.random() < 0.03:
            (self.folder / shard).unlink()
        self.put("model.safetensors.index.json", index)

    def load(self):
        return GPT2.from_pretrained(self.folder)

    def check(self, model):
        weight_map = json.loads((self.folder / "model.safetensors.index.json").read_bytes())["weight_map"]
        stored = {shard: held(self.contents[shard]) for shard in set(weight_map.values())}
        assert {(name, shard) for shard, names in stored.items() for name in names} == set(weight_map.items())
        assert_same(arrays(model), {name: stored[shard][name] for name, shard in weight_map.items()})
        assert_usable(model, self.folder)


# Values that adapter_config.json could have, or could nearly have.
TELLING = {
    "r": [0, 1, 3, -2, True, 2.0, "2", None, 10**400],
    "lora_alpha": [0, -1, 1e-300, 1e308, 1e309, 10**400, True, "16", None, [], 0.5],
    "lora_dropout": [1, 1.0, -0.1, 0.99, True, False, None, "0"],
    "target_modules": [None, [], "", "all-linear", "All-Linear", ".*", "(", "c_attn", ".*c_attn", "a{9999999999}",
                       r"transformer\.h\.\d\.(attn\.c_attn|mlp\.c_proj)", ["wte"], ["c_attn"], [".c_attn"], [""],
                       ["c_attn", 3], ["c_attn", "c_attn", "mlp.c_proj", "q_proj"], ["h.0.attn.c_attn"], {"a": 1}],
    "init_lora_weights": [True, False, None, "pissa", "olora", "gaussian", [], {}, 1, 0],
    "task_type": ["SEQ_CLS", None, 3, []],
    "base_model_name_or_path": [None, "", "other/model", "models/gpt2", "two\nlines", "\ud800", 3, "x" * 5000],
}


class Adapter(Subject):
    """PEFT's two files; one of them or both are corrupted."""

    def __init__(self, folder):
        super().__init__(folder)
        self.base = arrays(GPT2(CONFIG, seed=1))
        self.make_model()
        add_lora(self.model, LoraConfig(r=2, target_modules=["c_attn", "mlp.c_proj"]), seed=2)
        save_adapter(self.model, folder)
        self.config = json.loads((folder / "adapter_config.json").read_text())
        self.tensors = held((folder / "adapter_model.safetensors").read_bytes())
        self.make_model()

    def make_model(self):
        self.model = GPT2(CONFIG, seed=None)
        self.model.name_or_path = "models/gpt2"
        for name, tensor in self.model.parameters().items():
            tensor.data = self.base[name]
        self.modules = dict(self.model.named_modules())

    def damage(self, rng):
        config, tensors, part = json.dumps(self.config).encode(), dict(self.tensors), rng.random()
        if part < 0.2:
            field = rng.choice(list(TELLING))
            config = json.dumps(self.config | {field: rng.choice(TELLING[field])}).encode()
        elif part < 0.6:
            config = corrupt.corrupted_json(rng, self.config)
        if rng.random() < 0.1:  # as of a model without a head
            tensors = {name.replace("transformer.", ""): array for name, array in tensors.items()}
        if part > 0.55:
            corrupt_tensors(rng, tensors)
        self.content = corrupt.tensors_file(tensors)
        if part > 0.8:
            self.content = corrupt.corrupt_tensors_file(rng, self.content)
        self.put("adapter_config.json", config)
        self.put("adapter_model.safetensors", self.content)

    def load(self):
        return load_adapter(self.model, self.folder)

    def check(self, model):
        stored = held(self.content)
        names = {key: ".".join(re.search(r"(h\.\d.*)\.(lora_[AB])\b", key).groups()) for key in stored}
        assert len(set(names.values())) == len(names)
        assert_same(
            {name: tensor.data for name, tensor in model.trainable_parameters().items()},
            {names[key]: single(array) for key, array in stored.items()},
        )
        self.check_use(model)

    def check_use(self, model):
        """Assert that the model computes, and that its adapter can be saved, loaded again and merged."""
        self.make_model()
        with np.errstate(all="ignore"):
            logits = model.logits([1, 2, 10, 0])
            save_adapter(model, self.folder / "again")
            again = load_adapter(self.model, self.folder / "again")
            np.testing.assert_array_equal(again.logits([1, 2, 10, 0]), logits)
            merge_lora(model)
        self.make_model()

    def check_refusal(self):
        assert dict(self.model.named_modules()) == self.modules
        assert all(tensor.trainable for tensor in self.model.parameters().values())


class OldAdapter(Adapter):
    """PEFT's two files before 2023, with tensors in adapter_model.bin, which may be corrupted."""

    def __init__(self, folder):
        super().__init__(folder)
        (folder / "adapter_model.safetensors").unlink()

    def damage(self, rng):
        self.content, self.whole = corrupt_torch(rng, self.tensors)
        self.put("adapter_model.bin", self.content)

    def check(self, model):
        if self.whole:
            stored = {re.search(r"(h\.\d.*\.lora_[AB])", key)[1]: array for key, array in self.tensors.items()}
            assert_same({name: tensor.data for name, tensor in model.trainable_parameters().items()}, stored)
        self.check_use(model)

    def check_refusal(self):
        super().check_refusal()
        assert not self.whole, "a valid file was refused"


class State(Subject):
    """state.safetensors of a run's checkpoint."""

    PATH = "checkpoints/step-0/state.safetensors"

    def __init__(self, folder):
        super().__init__(folder)
        model = add_lora(GPT2(CONFIG, seed=1), LoraConfig(r=2))
        self.opt = AdamW(model.trainable_parameters())
        self.run = Run(folder)
        self.run.write_config({})
        self.run.save_checkpoint(model, self.opt)
        self.tensors = held((folder / self.PATH).read_bytes())

    def values(self):
        tensors = {"steps": np.array(self.opt.steps)}
        for name, tensor in self.opt.params.items():
            each = {"parameter": tensor.data, "exp_avg": self.opt.m[name], "exp_avg_sq": self.opt.v[name]}
            tensors |= {f"{kind}.{name}": array.copy() for kind, array in each.items()}
        return tensors

    def damage(self, rng):
        tensors = dict(self.tensors)
        for _ in range(rng.choice([0, 1, 1, 2])):
            corrupt_tensors(rng, tensors, "steps" if rng.random() < 0.2 else None)
        self.content = corrupt.tensors_file(tensors)
        if rng.random() < 0.4:
            self.content = corrupt.corrupt_tensors_file(rng, self.content)
        self.put(self.PATH, self.content)
        self.before = self.values()

    def load(self):
        self.run.load_checkpoint(0, self.opt)

    def check(self, loaded):
        assert_same(self.values(), held(self.content))
        assert self.opt.steps == 0

    def check_refusal(self):
        assert_same(self.values(), self.before)


class TokenizerFiles(Subject):
    """tokenizer.json, or vocab.json and merges.txt, with a config.json beside them."""

    def __init__(self, folder):
        super().__init__(folder)
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.normalizer = tokenizers.normalizers.NFC()
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        tokenizer.post_processor = tokenizers.processors.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=275, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
            special_tokens=[END_OF_TEXT],
        )  # fmt: skip
        tokenizer.train_from_iterator([TEXT], trainer)
        tokenizer.enable_padding(length=8)
        tokenizer.enable_truncation(3)
        tokenizer.save(str(folder / "tokenizer.json"))
        tokenizer.model.save(str(folder))
        self.contents = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.contents["config.json"] = json.dumps(CONFIG.to_dict()).encode()

    def damage(self, rng):
        contents = dict(self.contents)
        name = rng.choice(["tokenizer.json", "tokenizer.json", "vocab.json", "merges.txt", "config.json"])
        if name.endswith(".json"):
            contents[name] = corrupt.corrupted_json(rng, json.loads(contents[name]))
        else:
            contents[name] = corrupt.corrupt_bytes(rng, contents[name])
        if name == "config.json":  # which is read where the tokenizer has no end of text
            contents = {each: content.replace(b"<|endoftext|>", b"<|other|>") if each != name else content
                        for each, content in contents.items()}
        if name in ("vocab.json", "merges.txt"):
            del contents["tokenizer.json"]
            (self.folder / "tokenizer.json").unlink(missing_ok=True)
        for each, content in contents.items():
            self.put(each, content)

    def load(self):
        return Tokenizer.from_pretrained(self.folder)

    def check(self, tokenizer):
        assert tokenizer.vocab_size >= 0
        tokenizer.save(self.folder / "again")
        again = Tokenizer.from_pretrained(self.folder / "again")
        for text in (TEXT, "\u00e9 \U0001f600\0\n", END_OF_TEXT):
            try:
                ids = tokenizer.encode(text)
            except ConfigError:
                continue
            assert isinstance(tokenizer.decode(ids), str)
            np.testing.assert_array_equal(again.encode(text), ids)
        try:
            assert 0 <= tokenizer.eos_id
        except ConfigError:
            pass


class Texts(Subject):
    """A data file: lines of text, or of JSON."""

    def damage(self, rng):
        self.name = rng.choice(["data.txt", "data.jsonl", "data.jsonl"])
        lines = []
        for _ in range(rng.randrange(5)):
            text = rng.choice([TEXT, "one", " ", "na\u00efve \u2603", "\U0001f600"])
            if self.name == "data.txt":
                lines.append(text.encode())
            elif rng.random() < 0.5:
                lines.append(json.dumps({"text": text, "id": 3}).encode())
            else:
                lines.append(corrupt.corrupted_json(rng, {"text": text, "id": [1, {"a": None}]}))
        self.content = rng.choice([b"\n", b"\n", b"\r\n", b"\n\n", b"\r", b"\0"]).join(lines)
        if rng.random() < 0.5:
            self.content = corrupt.corrupt_bytes(rng, self.content)
        self.put(self.name, self.content)

    def load(self):
        return data.read_texts(self.folder / self.name)

    def check(self, texts):
        lines = [line for line in re.split("\r\n|\r|\n", text_of(self.content)) if line.strip()]
        expected = [json.loads(line)["text"] if self.name == "data.jsonl" else line.rstrip() for line in lines]
        assert texts == [text for text in expected if text.strip()] != []
        "".join(texts).encode()  # no half of a surrogate pair


class Json(Subject):
    """A data file: JSON objects in an array, or one after another."""

    def damage(self, rng):
        values = [{"text": rng.choice([TEXT, "one", "na\u00efve \u2603", "\\"]), "id": [1, {"a": None}]}
                  for _ in range(rng.randrange(4))]
        blank = rng.choice(["", " ", "\n", "\r\n\t", "\n\n"])
        if rng.random() < 0.3:
            self.content = corrupt.corrupted_json(rng, values)
        else:
            damaged = [corrupt.corrupted_json(rng, value) if rng.random() < 0.2 else json.dumps(value).encode()
                       for value in values]
            array = rng.random() < 0.6
            between = f"{blank},{blank}" if array else blank
            start, end = ("[", "]") if array else ("", "")
            self.content = f"{start}{blank}".encode() + between.encode().join(damaged) + f"{blank}{end}".encode()
        if rng.random() < 0.4:
            self.content = corrupt.corrupt_bytes(rng, self.content)
        self.put("data.json", self.content)

    def load(self):
        return list(data.read_records(self.folder / "data.json"))

    def check(self, records):
        expected = json_objects(self.content)
        assert expected is not None, "an invalid file was loaded"
        assert expected is UNSURE or repr([record.fields for record in records]) == repr(expected)  # a NaN is no NaN

    def check_refusal(self):
        assert json_objects(self.content) in (None, UNSURE), "a valid file was refused"


class Csv(Subject):
    """A data file: rows; the first one names the columns."""

    def damage(self, rng):
        fields = [TEXT, "one", "", " ", "a, b", 'say "so"', "two\nlines", "na\u00efve \u2603", "1"]
        rows = [rng.sample(["text", "id", "na\u00efve", '"q"', " label "], rng.choice([1, 2, 2, 3]))]
        rows += [[rng.choice(fields) for _ in rows[0]] for _ in range(rng.randrange(4))]
        if rng.random() < 0.2:
            rng.choice(rows).append("more")
        end = rng.choice(["\n", "\r\n"])
        lines = [",".join(field if rng.random() < 0.2 else '"' + field.replace('"', '""') + '"' for field in row)
                 for row in rows]
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(["", lines[0]]))
        self.content = end.join(lines).encode() + rng.choice([b"", end.encode()])
        if rng.random() < 0.5:
            self.content = corrupt.corrupt_bytes(rng, self.content)
        self.put("data.csv", self.content)

    def load(self):
        return list(data.read_records(self.folder / "data.csv"))

    def check(self, records):
        expected = csv_records(self.content)
        assert expected is not None, "an invalid file was loaded"
        assert expected is UNSURE or [record.fields for record in records] == expected

    def check_refusal(self):
        assert csv_records(self.content) in (None, UNSURE), "a valid file was refused"


class Chats(Subject):
    """A file of conversations: messages in the usual formats."""

    MESSAGES = (
        {"role": "system", "content": ""}, {"role": "user", "content": TEXT, "name": "Ann"},
        {"role": "user", "content": [{"type": "text", "text": "na\u00efve "}, {"type": "text", "text": "\U0001f600"}]},
        {"from": "human", "value": "one"}, {"role": "tool", "content": ""},
        {"role": "assistant", "content": None, "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": {"a": [1, None]}}},
            {"function": {"name": "g", "arguments": "{\"a\": 1}"}}]},
    )  # fmt: skip

    def damage(self, rng):
        lines = []
        for _ in range(rng.randrange(1, 4)):
            messages = [rng.choice(self.MESSAGES) for _ in range(rng.randrange(4))]
            record = {rng.choice(["messages", "conversations"]): [*messages, {"role": "assistant", "content": "one"}]}
            sound = rng.random() < 0.5
            lines.append(json.dumps(record).encode() if sound else corrupt.corrupted_json(rng, record))
        self.put("chats.jsonl", b"\n".join(lines))

    def load(self):
        return list(data.Documents(self.folder / "chats.jsonl"))

    def check(self, documents):
        for document in documents:
            texts = [text for text, _ in document.segments]
            assert texts[-1] is data.END
            "".join(text for text in texts if text is not data.END).encode()
            assert document.segments[-2][1], "a conversation ends with what is learned"


class Parquet(Subject):
    """A table of conversations and texts, if pyarrow is installed."""

    def __init__(self, folder):
        super().__init__(folder)
        rows = [{"text": "the cat " * i, "messages": [{"role": "user", "content": TEXT}], "n": i} for i in range(40)]
        self.contents = []
        for options in ({}, {"compression": "none"}, {"row_group_size": 7}):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "x", **options)
            self.contents.append((folder / "x").read_bytes())

    def damage(self, rng):
        self.put("x.parquet", corrupt.corrupt_bytes(rng, rng.choice(self.contents)))

    def load(self):
        return list(data.read_records(self.folder / "x.parquet"))

    def check(self, records):
        assert all(type(record.fields) is dict for record in records)


KINDS = {
    "safetensors": Safetensors, "config": Config, "weights": Weights, "torch": TorchWeights, "index": Index,
    "adapter": Adapter, "old-adapter": OldAdapter, "state": State, "tokenizer": TokenizerFiles, "texts": Texts,
    "json": Json, "csv": Csv, "chats": Chats,
}  # fmt: skip
if pyarrow is not None:
    KINDS["parquet"] = Parquet


def arrays(model):
    return {name: tensor.data for name, tensor in model.parameters().items()}


def single(array):
    """Floats as float32."""
    assert array.dtype.kind == "f"
    with np.errstate(invalid="ignore"):  # of a NaN
        return array.astype(np.float32)


def assert_same(found, expected):
    """The same names with the same shapes and bits."""
    assert expected is not None, "an invalid file was loaded"
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape), name
        assert array.tobytes() == expected[name].tobytes(), name


def assert_usable(model, folder):
    """The model computes, and can be saved and loaded again."""
    with np.errstate(all="ignore"):  # weights may be anything
        assert model.logits([0]).shape == (1, model.config.vocab_size)
    model.save_pretrained(folder / "again")
    again = GPT2.from_pretrained(folder / "again")
    assert again.config == model.config
    assert_same(arrays(again), arrays(model))


def held(content):
    """Return the tensors of a safetensors file's bytes, dict name -> array, or None if they are not valid: the format's
    description written a second time, as simple and slow code."""
    try:
        size = int.from_bytes(content[:8], "little")
        text, payload = content[8 : 8 + size], content[8 + size :]
        assert len(content) >= 8 + size and size >= 2 and text.startswith(b"{")
        header = unique(corrupt.parse(text.decode()))
        metadata = unique(header.pop("__metadata__", corrupt.Object()))
        assert all(type(value) is str for value in metadata.values())
        tensors, spans = {}, []
        for name, entry in header.items():
            name.encode()  # half of a surrogate pair is no text
            fields = unique(entry)
            assert fields.keys() == {"dtype", "shape", "data_offsets"}
            shape, (begin, end) = fields["shape"], fields["data_offsets"]
            assert type(shape) is list and all(type(n) is int and n >= 0 for n in [*shape, begin, end])
            width, dtype = corrupt.DTYPES[fields["dtype"]]
            count = 1
            for n in shape:
                count *= n
            assert begin <= end <= len(payload) and end - begin == count * width
            array = np.frombuffer(payload[begin:end], dtype).reshape(shape)
            tensors[name] = (array.astype("u4") << 16).view("f4") if fields["dtype"] == "BF16" else array
            spans.append((begin, end))
        spans = [(0, 0), *sorted(spans), (len(payload), len(payload))]
        assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
    except (AssertionError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return tensors


def text_of(content):
    """Return the text in the bytes of a file: UTF-8, or what a byte order mark says."""
    for mark, name in ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
                       (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):
        if content.startswith(mark):
            return content.decode(name)
    return content.decode("utf-8-sig")


def json_objects(content):
    """Return a .json data file's records, a list of dicts, or None if its bytes are not valid. How deep values may
    be nested depends on the reader."""
    if content.count(b"[") + content.count(b"{") > 300:
        return UNSURE
    try:
        text, values, at = text_of(content), [], 0
        if text.lstrip(BLANK).startswith("["):
            values = json.loads(text)
        else:
            while (at := len(text) - len(text[at:].lstrip(BLANK))) < len(text):
                value, at = json.JSONDecoder().raw_decode(text, at)
                values.append(value)
        assert all(type(value) is dict for value in values)
    except (AssertionError, ValueError):
        return None
    return values


def csv_records(content):
    """Return a .csv data file's records, a list of dicts, or None if its bytes are not valid. The reader decides
    which names of columns are allowed, and Python 3.10 refuses zero bytes."""
    try:
        rows = csv_rows(text_of(content))
    except ValueError:
        return None
    if content.startswith(b"version https://git-lfs"):  # a pointer of Git LFS is refused, whatever else it may be
        return UNSURE
    if b"\0" in content or rows is None:
        return UNSURE if b"\0" in content else None
    while rows and not "".join(rows[0]).strip():
        del rows[0]
    names, *rows = [rows[0] if rows else [], *(row for row in rows[1:] if row)]
    names = [name.strip() for name in names]
    if "" in names or len({*names}) < len(names) or (len(names) == 1 and re.search("[;\t|]", names[0])):
        return UNSURE
    if any(len(row) != len(names) for row in rows):
        return None
    return [dict(zip(names, row, strict=True)) for row in rows]


def csv_rows(text):
    """Return a CSV text's rows, lists of fields, or None if it is not valid. A quote opens a field only as its first
    character, the character after the closing quote ends it, and a carriage return outside quotes ends the line."""
    rows, row, field, state = [], [], "", "row begins"
    lines = re.findall("[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", text)
    for character in itertools.chain.from_iterable([*line, None] for line in lines):
        if state == "row has ended":
            if character is None:
                state = "row begins"
            elif character not in "\r\n":
                return None
        elif state == "in quotes":
            if character == '"':
                state = "after quotes"
            elif character is not None:
                field += character
        elif state == "after quotes" and character == '"':
            field, state = field + character, "in quotes"
        elif character in ("\r", "\n", None):
            rows.append(row if state == "row begins" else [*row, field])
            row, field, state = [], "", "row begins" if character is None else "row has ended"
        elif character == ",":
            row, field, state = [*row, field], "", "field begins"
        elif state == "after quotes":
            return None
        elif character == '"' and state != "in a field":
            state = "in quotes"
        else:
            field, state = field + character, "in a field"
    return None if state == "in quotes" else rows


def unique(pairs):
    """Return a JSON object as a dict; no key may occur twice."""
    assert isinstance(pairs, corrupt.Object) and len(dict(pairs)) == len(pairs)
    return dict(pairs)


def pretend(rng, config, tensors):
    """Claim a large model, with names and with tensors without elements."""
    width, layers = rng.choice([8, 64, 256]), rng.choice([3, 100, 3000])
    config |= {"n_layer": layers, "n_embd": width, "vocab_size": 1, "n_positions": 1}
    tensors["wte.weight"] = tensors["wpe.weight"] = np.zeros((1, width), np.float16)
    tensors["h.0.mlp.c_fc.weight"] = np.zeros((width, 4 * width), np.float16)
    name = rng.choice(["h.{}.x", "h.{}.mlp.c_fc.weight", "h.{}.ln_1.bias"])
    tensors |= {name.format(layer): np.zeros(0, np.float16) for layer in range(1, layers)}


def corrupt_torch(rng, tensors):
    """Return torch.save's bytes of `tensors`, corrupted, and whether they still hold exactly these tensors."""
    file, legacy = corrupt.Torch(tensors), rng.random() < 0.4
    match rng.randrange(8):
        case 0 | 1 | 2:
            for _ in range(rng.choice([1, 1, 2])):
                file.corrupt(rng)
            return file.content(legacy), False
        case 3:
            opcodes = b"".join(rng.choice(corrupt.OPCODES) for _ in range(rng.choice([1, 1, 2])))
            return file.content(legacy, opcodes=opcodes, place=rng.randrange(9)), False
        case 4:
            return file.content(legacy, method=zipfile.ZIP_DEFLATED), legacy
    whole = file.content(legacy)
    content = corrupt.corrupt_bytes(rng, whole)
    return content, content == whole


def corrupt_tensors(rng, tensors, name=None):
    """Change one tensor of the dict `tensors` (`name`, or any) in its name, dtype, shape or values. In place."""
    if name not in tensors:
        name = rng.choice(list(tensors) or [""])
    array = tensors.pop(name, np.zeros((2, 3), np.float32))
    with np.errstate(all="ignore"):
        match rng.randrange(6):
            case 0:
                return
            case 1:
                name = rng.choice([*corrupt.STRINGS, name + "x", name[1:], name.upper(), f"transformer.{name}",
                                   f"model.{name}", name.replace("weight", "bias"), name.replace(".0.", ".1."),
                                   name.replace("h.", "h.0"), name.replace("lora_A", "lora_B")])
            case 2:
                array = array.astype(rng.choice(["f2", "f4", "f8", "i8", "i4", "u1", "?"]))
            case 3:
                array = rng.choice([array.T, array.ravel(), array[None], array[:1] if array.ndim else array,
                                    array[:0] if array.ndim else array, np.zeros((), "f4"), np.zeros((0, 2**40), "f4"),
                                    np.concatenate([array.ravel()] * 2)])
            case 4:
                values = np.full(array.shape, rng.choice([0, -1, 0.5, np.nan, np.inf, 1e300, 1e-300]))
                array = values.astype(rng.choice([array.dtype, "f8"]))
            case 5:
                extra = rng.choice(["h.0.attn.bias", "h.1.attn.masked_bias", "lm_head.weight", "h.7.x", "h.", "score",
                                    f"module.{name}", f"transformer.{name}", name.removeprefix("base_model.model."),
                                    "h.0.attn.c_attn.lora_A"])
                tensors[extra] = rng.choice([array, np.ones((1, 1, 6, 6), bool), np.zeros((), "f4")])
    tensors[name] = array
