"""Wrong requests: status 2, one line that says what is wrong and where, and nothing left behind (see `refused`)."""

import json
import re
import shutil

import numpy as np
import pytest

import npgpt
from npgpt.files import safetensors


@pytest.fixture(autouse=True)
def folder(tmp_path, model, adapter, texts):
    """A folder with model, adapter, texts.txt and run, for a test to spoil."""
    shutil.copytree(model, tmp_path / "model")
    shutil.copytree(adapter.parent, tmp_path / "run")
    shutil.copytree(adapter, tmp_path / "adapter")
    shutil.copy(texts, tmp_path / "texts.txt")
    return tmp_path


FINETUNE = ["finetune.py", "--model", "model", "--data", "texts.txt", "--out", "out"]
GENERATE = ["generate.py", "--model", "model", "--prompt", "hello"]
EVALUATE = ["evaluate.py", "--model", "model", "--data", "texts.txt"]
MERGE = ["merge.py", "--model", "model", "--adapter", "adapter", "--out", "out"]


# Data


@pytest.mark.parametrize("name, content, message", [
    ("data.txt", None, "cannot read data.txt: No such file or directory"),
    ("data.txt", b"", "data.txt holds no text"),
    ("data.txt", b"\n  \n\t\r\n", "data.txt holds no text"),
    ("data.txt", b"fine\n\xff\xfe\n", "data.txt:2: not UTF-8 text"),
    ("data.jsonl", b'{"text": "fine"}\n{"text": \n', "data.jsonl:2: not valid JSON"),
    ("data.jsonl", b'{"txet": "a"}\n', 'data.jsonl:1: its fields are "txet"; expected those of a kind'),
    ("data.jsonl", b'{"text": 3}\n', 'data.jsonl:1: its "text" is a number, expected a string'),
    ("data.jsonl", b'{"text": ""}\n', "data.jsonl: nothing to learn: all its records are blank"),
    ("data.jsonl", b'{"text": "a"}\n{"prompt": "a", "completion": "b"}\n', "data.jsonl:2: a record with \"prompt\", "
     '"completion", but the records before have "text"; expected one kind'),
    ("data.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n', 'data.jsonl:2: no "completion"'),
    ("data.json", b'[{"text": "fine"},\n{"text": 1}]', 'data.json:2: its "text" is a number, expected a string'),
    ("data.csv", b"text,n\nfine,1\nbad\n", "data.csv:3: 1 columns, but the first row names 2"),
    ("data.tsv", b"text\tn\n", "data.tsv holds no text: expected at least one line that is not blank"),
    ("data.parquet", b"text", "data.parquet"),
    ("data.jsonl", b'{"messages": [{"role": "user", "content": [{"type": "image"}]}]}',
     "data.jsonl:1: message 1: part 1 of its \"content\" is of the type 'image'; only text can be learned"),
    ("data.txt", b"fine\nbi\0nary\n", "data.txt:2: a zero byte: this is a binary file, not text"),
])
def test_data(refused, folder, name, content, message):
    if content is not None:
        (folder / name).write_bytes(content)
    assert message in refused(*FINETUNE, "--data", name)


def test_an_enormous_line(refused, folder):
    (folder / "data.txt").write_bytes(b"fine\n" + b"x" * (1 << 25) + b"\n")
    assert "data.txt:2: a line of more than 32 MB: a record must fit" in refused(*FINETUNE, "--data", "data.txt")
    (folder / "data.txt").unlink()


@pytest.mark.parametrize("options, message", [
    ("--separator ||", "texts.txt:1: the text has no '||'; expected prompt||completion"),
    ("--val-fraction 0.5 --val-data texts.txt", "--val-fraction holds out a part of the data, --val-data names other"),
    ("--val-fraction 1.5", "--val-fraction is 1.5, expected at least 0 and less than 1"),
    ("--val-fraction 1e-9", "texts.txt: nothing to measure on: --val-fraction leaves no record for it"),
    ("--template {text", "template '{text': expected '}' before end of string"),
    ("--template {question}", 'texts.txt:1: no "question"; it has "text"'),
    ("--split none --separator =", "--separator '=': it must stand between prompt and completion"),
    ("--split lines", "--split 'lines': it must be one of line, blank, none, or the mark between two"),
    ("--batch-tokens 20", "--batch-tokens 20: it must be at least 32, the length of the longest sequence"),
    ("--preview -1", "--preview -1: it must be at least 0"),
])
def test_options_of_data(refused, options, message):
    assert message in refused(*FINETUNE, *options.split())


def test_a_split_is_for_plain_text(refused, folder):
    (folder / "data.jsonl").write_text('{"text": "a"}')
    assert "--split is for plain text; the records in data.jsonl are separate already" in refused(
        *FINETUNE, "--data", "data.jsonl", "--split", "blank")


def test_a_folder_without_a_file_to_train_on(refused, folder):
    for name in ("validation", "test"):
        (folder / "splits" / name).mkdir(parents=True)
        (folder / "splits" / name / "a.txt").write_text("text\n")
    assert ("splits: nothing to train on: no file in it is named train; it has files of the splits validation, test"
            in refused(*FINETUNE, "--data", "splits"))
    assert "splits holds files of the splits validation, test: name one of the files, such as splits/test/a.txt" in (
        refused(*EVALUATE, "--data", "splits"))


def test_data_of_evaluate(refused, folder):
    (folder / "empty.txt").write_bytes(b"")
    assert "empty.txt holds no text" in refused(*EVALUATE, "--data", "empty.txt")
    assert "cannot read none.txt" in refused(*EVALUATE, "--data", "none.txt")


def test_held_out_data(refused, folder):
    (folder / "empty.txt").write_bytes(b"")
    assert "empty.txt holds no text" in refused(*FINETUNE, "--val-data", "empty.txt")
    assert "cannot read none.txt" in refused(*FINETUNE, "--val-data", "none.txt")
    assert "model/config.json:1: its fields are " in refused(*FINETUNE, "--val-data", "model")


def test_an_empty_name_is_not_the_default(refused):
    """As of an unset variable of the shell."""
    assert "'' names no model; a folder or a hub id would be right" in refused(*FINETUNE, "--model", "")


# Models


def rewrite(folder, **changes):
    """Give model.safetensors other tensors: None takes one away."""
    tensors = {**safetensors.read(folder / "model.safetensors"), **changes}
    safetensors.write(folder / "model.safetensors", {name: np.array(a) for name, a in tensors.items() if a is not None})


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


LN = "transformer.ln_f.weight"
DAMAGE = {
    "no config.json": (lambda m: (m / "config.json").unlink(), "model has no config.json"),
    "config.json is cut": (lambda m: truncate(m / "config.json"), "config.json is not valid JSON"),
    "config.json of another architecture": (
        lambda m: (m / "config.json").write_text('{"model_type": "llama"}'), "config.json: model_type = 'llama'"),
    "config.json with a wrong value": (
        lambda m: (m / "config.json").write_text('{"n_head": "two"}'), "config.json: n_head = 'two'"),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), "model has no "),
    "weights cut": (lambda m: truncate(m / "model.safetensors"), "model.safetensors: tensor"),
    "weights cut in the header": (
        lambda m: (m / "model.safetensors").write_bytes((m / "model.safetensors").read_bytes()[:200]),
        "model.safetensors is not a whole safetensors file"),
    "weights empty": (
        lambda m: (m / "model.safetensors").write_bytes(b""), "model.safetensors is not a whole safetensors file"),
    "weights not downloaded": (
        lambda m: (m / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        "Git LFS pointer"),
    "a tensor missing": (lambda m: rewrite(m, **{LN: None}), "1 missing: 'ln_f.weight'"),
    "a tensor too many": (lambda m: rewrite(m, more=np.zeros(3, np.float32)), "1 unexpected: 'more'"),
    "a tensor of another shape": (lambda m: rewrite(m, **{LN: np.ones(15, np.float32)}), "ln_f.weight has shape (15,)"),
    "a tensor of integers": (lambda m: rewrite(m, **{LN: np.ones(16, np.int32)}), "holds int32 numbers"),
    "no tokenizer": (lambda m: (m / "tokenizer.json").unlink(), "no tokenizer in model"),
    "tokenizer cut": (lambda m: truncate(m / "tokenizer.json"), "tokenizer.json: not a tokenizer"),
    "tokenizer of a larger vocabulary": (
        lambda m: npgpt.GPT2(npgpt.GPT2Config(vocab_size=50, n_positions=64, n_embd=16, n_layer=2, n_head=2))
        .save_pretrained(m), "is outside this model's vocabulary of 50"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_models(refused, folder, what):
    spoil, message = DAMAGE[what]
    spoil(folder / "model")
    assert message in refused(*FINETUNE)


@pytest.mark.parametrize("command", [GENERATE, EVALUATE, MERGE], ids=lambda command: command[0])
def test_every_command_says_what_is_wrong_with_a_model(refused, folder, command):
    assert "'nobody/nothing' is not in the cache" in refused(*command, "--model", "nobody/nothing")
    truncate(folder / "model" / "model.safetensors")
    assert "model.safetensors: tensor" in refused(*command)


@pytest.mark.parametrize("name, message", [
    ("./none", "there is no folder ./none"), ("no/such/model", "there is no folder no/such/model"),
    ("none", "there is no folder none here, and tokenizer.json or vocab.json of 'none' is not in the cache"),
    ("a b", "is neither a folder nor a hub id"),
    ("texts.txt", "texts.txt is a file"),
])
def test_unknown_models(refused, name, message):
    assert message in refused(*FINETUNE, "--model", name)


def test_a_folder_has_no_revisions(refused):
    assert "revision 'v1' is for a model on the hub" in refused(*FINETUNE, "--revision", "v1")


# Options


@pytest.mark.parametrize("options, message", [
    ("--targets nope", "target 'nope' matches no module of this model; its linear modules are attn.c_attn"),
    ("--targets c_attn,nope", "target 'nope' matches no module"),
    ("--targets=", "--targets is empty"),
    ("--targets ln_f", "is of class LayerNorm, neither a linear layer nor an embedding"),
    ("--targets h.[", "is not a regular expression"),
    ("--rank 0", "--rank 0: it must be a whole number from 1 to 65,536"),
    ("--rank -4", "--rank -4: "),
    ("--lr-ratio 0", "argument --lr-ratio: it must be a positive number"),
    ("--lr-ratio inf", "argument --lr-ratio: it must be a positive number"),
    ("--init svd", "argument --init: invalid choice: 'svd'"),
    ("--init orthogonal --rank 3", "the rank must be even"),
    ("--init pissa --dora", "--dora does not go together with --init 'pissa'"),
    ("--rank two", "argument --rank: 'two' is not a whole number"),
    ("--rank 1000000000000000", "--rank 1000000000000000: "),
    ("--alpha 0", "--alpha 0.0: it must be a positive number"),
    ("--dropout 1.5", "--dropout 1.5: it must be a probability in [0, 1)"),
    ("--full --dropout 1.5", "--dropout 1.5: it must be a probability in [0, 1)"),
    ("--lr nan", "argument --lr: 'nan' is not a finite number"),
    ("--lr -1", "--lr -1.0: "),
    ("--weight-decay -1", "--weight-decay -1.0: it must be at least 0"),
    ("--threads 0", "argument --threads: 0: it must be a whole number from 1 to 1,024"),
    ("--threads 1000000", "argument --threads: 1000000: it must be"),
    ("--threads two", "argument --threads: invalid threads value: 'two'"),
    ("--epochs 0", "--epochs 0: it must be a whole number of at least 1"),
    ("--batch-size 0", "--batch-size 0: "),
    ("--warmup -1", "--warmup -1: "),
    ("--schedule cyclic", "argument --schedule: invalid choice: 'cyclic'"),
    ("--seed -1", "--seed -1: "),
    ("--samples -1", "--samples -1: it must be at least 0"),
    ("--sample-prompts missing.txt", "cannot read missing.txt"),
    ("--max-length 0", "--max-length 0: it must be from 2 to the model's context of 64"),
    ("--max-length 1", "--max-length 1: it must be"),
    ("--max-length 65", "--max-length 65: it must be"),
    ("--frob", "unrecognized arguments: --frob"),
    ("stray", "unrecognized arguments: stray"),
])
def test_options_of_finetune(refused, options, message):
    assert message in refused(*FINETUNE, *options.split())


@pytest.mark.parametrize("options, message", [
    (["--prompt", ""], "--prompt is empty"),
    (["--prompt", "x" * 70, "--max-new-tokens", 1], "a prompt of 70 tokens and 1 new ones make 71"),
    (["--max-new-tokens", 60], "a prompt of 5 tokens and 60 new ones make 65"),
    (["--max-new-tokens", -1], "--max-new-tokens -1: "),
    (["--temperature", "nan"], "argument --temperature: 'nan' is not a finite number"),
    (["--top-k", -1], "--top-k -1: "),
    (["--top-p", 0], "--top-p 0.0: "),
    (["--seed", -1], "--seed -1: "),
    (["--num-samples", 0], "--num-samples 0: it must be at least 1"),
    (["--min-p", 2], "--min-p 2.0: it must be above 0 and at most 1"),
    (["--bad-word", ""], "argument --bad-word: it must not be empty"),
    (["--stop", ""], "argument --stop: it must not be empty"),
    (["--prompt-file", "text.txt"], "--prompt, --prompt-file, --field, --records and --interactive exclude"),
    (["--prompt", "-"], "the prompt from standard input is empty"),
    (["--field", "x"], "argument --field: 'x': expected NAME=TEXT, such as"),
    (["--prompt", "a", "--template", "{x}{y}{z}"], "--prompt gives one text, but the template has 'x', 'y'"),
    (["--max-new-tokens", 100], "shorten the prompt, ask for fewer tokens, or use --context slide"),
    (["--adapter", "adapter", "--adapter", "adapter", "--max-new-tokens", 60], "a prompt of 5 tokens and 60 new ones"),
    (["--num-samples", 9, "--max-new-tokens", 60], "a prompt of 5 tokens and 60 new ones"),
    (["--adapter", "none"], "cannot read none/adapter_config.json"),
    (["--adapter", "run"], "run is the folder of a run; its adapter is run/adapter"),
    (["--adapter", "model"], "model is the folder of a model, not of an adapter"),
])
def test_options_of_generate(refused, options, message):
    assert message in refused(*GENERATE, *options)


@pytest.mark.parametrize("options, message", [
    (["--field", "x=1"], "--field: no template for its fields 'x': give --template, or an --adapter beside which"),
    (["--field", "x=1", "--template", "{y}{z}"], '--field: no "y"; it has "x"'),
    (["--field", "x=1", "--template", "none"], "template 'none': it has no field"),
    (["--field", "x= ", "--template", "{x}{y}"], "--field: its prompt is empty"),
    (["--records", "missing.jsonl"], "cannot read missing.jsonl"),
    (["--records", "texts.txt", "--template", "{x}{y}{z}"], "texts.txt:1 gives one text, but the template has 'x'"),
])
def test_records_to_answer(refused, options, message):
    assert message in refused("generate.py", "--model", "model", *options)


@pytest.mark.parametrize("options, message", [
    ("--context 1", "--context 1: it must be at least 2"),
    ("--context -3", "--context -3: it must be at least 2"),
    ("--stride 0", "--context 64, --stride 0"),
    ("--context 32 --stride 33", "--context 32, --stride 33"),
    ("--adapter none", "cannot read none/adapter_config.json"),
])
def test_options_of_evaluate(refused, options, message):
    assert message in refused(*EVALUATE, *options.split())


@pytest.mark.parametrize("command, missing", [
    (["evaluate.py", "--model", "model"], "--data"),
    (["merge.py", "--model", "model", "--out", "out"], "--adapter"),
    (["merge.py", "--model", "model", "--adapter", "adapter"], "--out"),
])
def test_required_options(refused, command, missing):
    assert f"the following arguments are required: {missing}" in refused(*command)


@pytest.mark.parametrize("command, message", [
    ([*MERGE, "--no-certificate", "--text", "texts.txt"], "--text is for the certificate, and has no effect"),
    (["gradcheck.py", "--revision", "v1"], "--revision needs --model, the model on the hub that"),
    (["inspect_adapter.py", "adapter", "--revision", "v1"], "--revision needs --model"),
    (["convert_adapter.py", "x.pt", "--alpha", 1, "--out", "out", "--revision", "v1"], "--revision needs --model"),
])
def test_options_without_effect(refused, command, message):
    assert message in refused(*command)


# Adapters


@pytest.mark.parametrize("command", [GENERATE, EVALUATE, MERGE], ids=lambda command: command[0])
def test_an_adapter_of_another_size(refused, folder, command):
    npgpt.GPT2(npgpt.GPT2Config(vocab_size=257, n_positions=64, n_embd=8, n_layer=2, n_head=2)).save_pretrained(
        folder / "narrow")
    shutil.copy(folder / "model" / "tokenizer.json", folder / "narrow")
    assert "does not fit this model" in refused(*command, "--model", "narrow", "--adapter", "adapter")


def test_damaged_adapters(refused, folder):
    truncate(folder / "adapter" / "adapter_model.safetensors")
    assert "adapter_model.safetensors: tensor" in refused(*MERGE)
    (folder / "adapter" / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    assert "peft_type = 'IA3'" in refused(*MERGE)
    (folder / "adapter" / "adapter_config.json").write_text("{")
    assert "adapter_config.json is not valid JSON" in refused(*MERGE)


def test_an_adapter_that_holds_nan(refused, folder):
    path = folder / "adapter" / "adapter_model.safetensors"
    tensors = {name: array.copy() for name, array in safetensors.read(path).items()}
    next(iter(tensors.values()))[0] = np.nan
    safetensors.write(path, tensors)
    message = r"^error: adapter/adapter_model.safetensors: lora_A of h\.0\.attn\.c_attn holds NaN or infinity, \d+ of \d+"
    assert re.search(message, refused(*GENERATE, "--adapter", "adapter"))


# Folders


@pytest.mark.parametrize("out", ["texts.txt", "texts.txt/below", "/proc/npgpt", "/dev/null/npgpt"])
def test_folders_that_cannot_be_written(refused, out):
    assert re.match(f"error: cannot write (into )?{out}", refused(*FINETUNE, "--out", out))
    assert re.match(f"error: cannot write (into )?{out}", refused(*MERGE, "--out", out))


def test_folders_that_hold_something(refused):
    assert "run holds a run already" in refused(*FINETUNE, "--out", "run")
    assert "cannot write model: it exists already and is not an empty folder" in refused(*MERGE, "--out", "model")


@pytest.mark.parametrize("spoil, message", [
    (lambda run: shutil.rmtree(run), "run holds no run, because it has no config.json"),
    (lambda run: (run / "metrics.jsonl").write_text(""), "metrics.jsonl lacks step 1"),
    (lambda run: truncate(next(run.rglob("state.safetensors"))), "state.safetensors: tensor"),
    (lambda run: (run / "config.json").write_text("{"), "config.json is not valid JSON"),
    (lambda run: (run / "config.json").write_text("{}"), "config.json does not hold the settings of a run"),
    (lambda run: (run / "config.json").write_text('{"settings": {"rank": 3}}'), "does not hold the settings of a run"),
    (lambda run: respell(run, "epochs", "three"), "run/config.json: epochs = three: "),
    (lambda run: respell(run, "rank", 4), "settings.rank was 8 and is 4; a resumed run goes on as it began"),
    (lambda run: respell(run, "seed", 4), "settings.seed was 0 and is 4"),
    (lambda run: respell(run, "data", "gone.txt"), "cannot read gone.txt"),
    (lambda run: respell(run, "model", "./gone"), "there is no folder ./gone"),
])
def test_runs_that_cannot_be_resumed(refused, folder, spoil, message):
    spoil(folder / "run")
    assert message in refused("finetune.py", "--resume", "run")


def respell(run, name, value):
    """Change one setting of a run."""
    config = json.loads((run / "config.json").read_text())
    config["settings"][name] = value
    (run / "config.json").write_text(json.dumps(config))


def test_a_model_folder_is_no_run(refused):
    assert "model/config.json does not hold the settings of a run" in refused("finetune.py", "--resume", "model")


# Training that cannot go well


def test_a_training_that_diverges_says_so(run_script, folder):
    result = run_script(folder, *FINETUNE, "--lr", "1e30", "--quiet")
    assert result.returncode == 2
    assert re.search(r"^error: step \d has loss nan .*: the training has diverged; start again with a smaller",
                     result.stderr, re.M)
    assert "Traceback" not in result.stderr
    lines = (folder / "out" / "metrics.jsonl").read_text().splitlines()
    assert lines
    assert all(np.isfinite(json.loads(line)["loss"]) for line in lines)  # NaN would be no JSON
    assert not (folder / "out" / "adapter").exists()
