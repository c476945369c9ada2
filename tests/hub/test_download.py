"""Models from the hub, really through huggingface_hub, in processes of their own with an empty cache.

The hub is the one in server.py, on the loopback interface. What huggingface_hub does about a transfer that breaks off
depends on its version: it tries again by itself, or fails and has a later call go on. Both are fine (see `insist`).
"""

import itertools
import json
import pickle
import re
import threading
import time
from pathlib import Path

import pytest
import tokenizers

import npgpt
from npgpt.files import safetensors
from npgpt.runtime.errors import FileError, FormatError, HubError
from tests.files.test_torchfile import archive, legacy, saved
from tests.hub.process import Process, digest
from tests.hub.server import Breakdown, Hub

CONFIG = npgpt.GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=257, n_positions=6)
WHOLE, PICKLED = "model.safetensors", "pytorch_model.bin"
NO_WAITING = "exec('import time; time.sleep = lambda seconds: None')"  # between the attempts of huggingface_hub


def files_of(model, folder):
    """Return {name: bytes} of the model's files and of a tokenizer of single bytes."""
    model.save_pretrained(folder)
    vocab = {token: i for i, token in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab | {"<|endoftext|>": 256}, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    npgpt.Tokenizer(tokenizer).save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def model():
    return npgpt.GPT2(CONFIG, seed=1)


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    return files_of(model, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def bare(files):
    """The files without weights."""
    return {name: content for name, content in files.items() if name != WHOLE}


@pytest.fixture(scope="module")
def shared_hub():
    with Hub() as hub:
        yield hub


@pytest.fixture
def hub(shared_hub):
    shared_hub.take()
    return shared_hub


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def process(shared_hub, home):
    """A process with the cache `home`, in which each test loads a model of its own."""
    with Process(home, shared_hub.url) as process:
        process(NO_WAITING)
        yield process


def insist(process, name):
    """Load the model, at the third attempt at the latest; those before may only say that it cannot be downloaded."""
    for _ in range(2):
        try:
            return process.load(name)
        except HubError as error:
            assert re.match(f"cannot download .* of '{name}'|.* answered 503", str(error))
    return process.load(name)


# What is downloaded


def test_gpt2_is_downloaded_once_and_then_needs_no_hub(tmp_path, model, files):
    read_text = "npgpt.Tokenizer.from_pretrained('gpt2').encode('a b').tolist()"
    with Hub() as hub:
        name = "openai-community/gpt2"
        (commit,) = hub.add(name, files | {PICKLED: b"not needed"}).commits
        hub.moved["gpt2"] = name
        with Process(tmp_path, hub.url) as first:
            assert not first("npgpt.files.hub.cached('gpt2')")
            assert len(first(read_text)) == 3
            assert not first("npgpt.files.hub.cached('gpt2')")  # nor are its weights yet
            assert first.load("gpt2") == digest(model)
            assert [line for line in hub.take(name) if line.startswith("GET")] == [
                f"GET /{name}/resolve/main/tokenizer.json",
                f"GET /{name}/resolve/main/config.json",
                f"GET /storage/{name}/{commit}/{WHOLE}",
            ]
        with Process(tmp_path, hub.url) as second:
            assert second(read_text) and second.load("gpt2") == digest(model)
            assert second("npgpt.files.hub.cached('gpt2')")
            assert hub.take() == []
            hub.close()
            assert second(read_text) and second.load("gpt2") == digest(model)
            with pytest.raises(HubError, match=f"config.json of 'o/other' is not in the cache .* {hub.url} cannot be"):
                second.load("o/other")
            with pytest.raises(HubError, match="and local_files_only forbids the download"):
                second.load("o/other", local_files_only=True)
    with Process(tmp_path, hub.url, HF_HUB_OFFLINE="1") as offline:
        assert offline(read_text) and offline.load("gpt2") == digest(model)
        with pytest.raises(HubError, match="and HF_HUB_OFFLINE forbids the download"):
            offline.load("o/other")


def sharded(tensors, index, suffix, write):
    """The files of three shards and of the index that lists them."""
    shards = {f"part-{i}-of-3{suffix}": dict(list(tensors.items())[i - 1 :: 3]) for i in (1, 2, 3)}
    weight_map = {key: shard for shard, held in shards.items() for key in held}
    files = {shard: write(held) for shard, held in shards.items()}
    return files | {index: json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}).encode()}


@pytest.mark.parametrize("kind", ["bin", "legacy-bin", "sharded-safetensors", "sharded-bin"])
def test_weights_in_other_files(hub, process, model, bare, tmp_path, kind):
    tensors = {f"transformer.{name}": leaf.data for name, leaf in model.parameters().items()}

    def write(held):
        safetensors.write(tmp_path / "x", held)
        return (tmp_path / "x").read_bytes()

    weights = {
        "bin": lambda: {PICKLED: saved(tensors | {"lm_head.weight": tensors["transformer.wte.weight"]})},
        "legacy-bin": lambda: {PICKLED: saved(tensors, legacy)},
        "sharded-safetensors": lambda: sharded(tensors, f"{WHOLE}.index.json", ".safetensors", write),
        "sharded-bin": lambda: sharded(tensors, f"{PICKLED}.index.json", ".bin", saved),
    }[kind]()
    (commit,) = hub.add(f"o/{kind}", bare | weights).commits
    assert process.load(f"o/{kind}") == digest(model)
    fetched = [line for line in hub.take(commit) if line.startswith("GET")]
    assert sorted(line.rpartition("/")[2] for line in fetched) == sorted(weights)
    assert process.load(f"o/{kind}") == digest(model)
    assert hub.take() == []
    for name, content in (bare | weights).items():
        (tmp_path / name).write_bytes(content)
    assert digest(npgpt.GPT2.from_pretrained(tmp_path)) == digest(model)  # a folder that was copied from the hub


def test_files_that_are_missing_or_not_what_they_should_be(hub, process, files, bare, tmp_path):
    hub.add("o/no-weights", bare | {"tf_model.h5": b""})
    hub.add("o/no-config", {WHOLE: files[WHOLE]})
    for _ in range(2):
        with pytest.raises(FileError, match=r"o/no-weights has no weights that npgpt reads: none of .*convert"):
            process.load("o/no-weights")
        with pytest.raises(FileError, match=r"o/no-config has no config\.json"):
            process.load("o/no-config")
        requests = hub.take()
    assert requests == []  # it is remembered what there is not

    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "was here",)

    program = pickle.dumps(Hostile(), 2)
    for name, content in (("o/hostile", archive(program)), ("o/raw", program)):
        hub.add(name, bare | {PICKLED: content})
        with pytest.raises(FormatError, match=f"{PICKLED}.* nothing was run"):
            process.load(name)
    assert not (tmp_path / "was here").exists()


def test_revisions(hub, process, model, files, tmp_path):
    other = npgpt.GPT2(CONFIG, seed=2)
    repository = hub.add("o/revisions", files)
    commit = repository.refs["main"]
    assert process("str(npgpt.files.hub.file('o/revisions', 'config.json'))").endswith(f"{commit}/config.json")
    moved_on = repository.commit(files_of(other, tmp_path), "main", "v2", "refs/pr/1")
    hub.take()
    assert process.load("o/revisions") == digest(model)  # with the config.json that is here already
    assert {line.split("/")[4] for line in hub.take("resolve")} == {commit}
    for revision, expected in ((commit, model), ("v2", other), (moved_on[:8], other), ("refs/pr/1", other)):
        for _ in range(2):
            hub.take()
            assert process.load("o/revisions", revision=revision) == digest(expected)
        assert hub.take() == []
    with pytest.raises(HubError, match=f"'o/revisions' has no revision 'v3' on {hub.url}; a branch, tag or commit"):
        process.load("o/revisions", revision="v3")


# Who is let in


def test_tokens(hub, process, model, files):
    private, gated = hub.add("o/private", files), hub.add("o/gated", files)
    private.token, gated.token, gated.gated = "hf_right", "hf_right", True
    refusals = {
        "o/gated": f"'o/gated' is gated: ask for access on {hub.url}/o/gated, then log in",
        "o/private": "answered 401 for config.json of 'o/private'; check the name and the token, or log in",
        "o/absent": "answered 401 for config.json of 'o/absent'; check the name and the token, or log in",
    }
    missing = f"'o/absent' is neither a folder here nor a model on {hub.url}; a private one needs `hf auth login`"
    for token, expected in ((None, refusals), ("hf_wrong", refusals | {"o/absent": missing})):
        process(f"__import__('os').environ.update({ {'HF_TOKEN': token} if token else {} })")
        for name, message in expected.items():
            with pytest.raises(HubError, match=message):
                process.load(name)
        assert {request.token for request in hub.requests if "/o/" in request.path} == {token}
        hub.take()
    process("__import__('os').environ.update(HF_TOKEN='hf_right')")
    assert process.load("o/private") == process.load("o/gated") == digest(model)
    assert {request.token for request in hub.requests if "storage" in request.path} == {None}  # not for other servers
    process("__import__('os').environ.pop('HF_TOKEN') and None")


# What goes wrong on the way


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (200, "does not answer like a Hugging Face hub; check HF_ENDPOINT and the proxy settings"),  # a log-in page
        (404, "answered 404 for config.json of 'o/fails-404'"),
        (403, "answered 403 for config.json of 'o/fails-403'; check the name and the token"),
        (429, "answered 429 for config.json of 'o/fails-429'"),
        (500, "answered 500 for config.json of 'o/fails-500'"),
        (503, "answered 503 for config.json of 'o/fails-503'"),
    ],
)
def test_a_hub_that_fails(hub, process, model, files, status, message):
    name = f"o/fails-{status}"
    repository = hub.add(name, files)
    repository.statuses = itertools.repeat(status)
    with pytest.raises(HubError, match=f"{hub.url} {message}"):
        process.load(name)
    repository.statuses = iter([503])
    assert insist(process, name) == digest(model)


def test_a_hub_whose_front_page_fails(hub, process):
    hub.statuses, before = iter([503]), hub.statuses
    with pytest.raises(HubError, match=rf"{hub.url} cannot be reached \(no answer in 2 s, or a server error\); name a"):
        process.load("o/front")
    hub.statuses = before
    assert hub.take() == ["HEAD /"]


def test_a_large_file_that_breaks_off_is_gone_on_with(hub, process, tmp_path):
    """Not a small one: huggingface_hub takes up to 10 MiB at a time, and what is less is lost."""
    large = npgpt.GPT2(npgpt.GPT2Config(n_layer=1, n_head=1, n_embd=64, vocab_size=50000, n_positions=8), seed=0)
    repository = hub.add("o/large", files_of(large, tmp_path))
    repository.transfers[WHOLE] = iter([Breakdown(11_000_000)])
    assert insist(process, "o/large") == digest(large)
    first, second = (line.partition(WHOLE)[2] for line in hub.take("storage"))
    assert (first, second) == ("", f" bytes={10 * 2**20}-")


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_transfer_that_breaks_off(hub, process, home, model, files, how):
    name = f"o/{how}"
    repository = hub.add(name, files)
    repository.transfers[WHOLE] = itertools.repeat(Breakdown(1000, how))
    with pytest.raises(HubError, match=f"cannot download {WHOLE} of '{name}' from {hub.url}: .*; try again, or name a"):
        process.load(name)
    assert not list((home / "hub" / f"models--o--{how}" / "snapshots").rglob(WHOLE))
    repository.transfers[WHOLE] = iter([Breakdown(1000, how)])
    assert insist(process, name) == digest(model)


def test_a_transfer_that_stops_and_a_process_that_is_killed(hub, model, files, tmp_path):
    repository = hub.add("o/stall", files)
    repository.transfers[WHOLE] = iter([Breakdown(1000, "stall")] * 2)
    with Process(tmp_path, hub.url) as killed:

        def load():
            with pytest.raises(AssertionError, match="the process has ended"):
                killed.load("o/stall")

        thread = threading.Thread(target=load)
        thread.start()
        give_up = time.monotonic() + 20
        while not any("storage" in request.path for request in hub.requests) and time.monotonic() < give_up:
            time.sleep(0.01)
        killed.kill()
        thread.join()
    with Process(tmp_path, hub.url, HF_HUB_DOWNLOAD_TIMEOUT="1") as process:
        assert insist(process, "o/stall") == digest(model)
    assert next(repository.transfers[WHOLE], None) is None


def test_two_processes_at_once(hub, model, files, tmp_path):
    hub.add("o/both", files)
    with Process(tmp_path, hub.url) as one, Process(tmp_path, hub.url) as two:
        found = []
        threads = [threading.Thread(target=lambda p=p: found.append(p.load("o/both"))) for p in (one, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [digest(model)] * 2


# What was downloaded and is wrong


def test_a_file_of_another_length_is_noticed(hub, process, model, files):
    repository = hub.add("o/length", files)
    repository.transfers[WHOLE] = iter([files[WHOLE][:-1]])
    with pytest.raises(HubError, match=f"cannot download {WHOLE} of 'o/length' from {hub.url}: .*size .*; try again"):
        process.load("o/length")
    assert insist(process, "o/length") == digest(model)


@pytest.mark.parametrize("name", ["config.json", WHOLE, PICKLED])
def test_a_damaged_file_is_named_and_can_be_downloaded_again(hub, process, home, model, files, bare, name):
    """The length is right and the content is not."""
    repository_name = f"o/damaged-{name[:5]}"
    tensors = {key: leaf.data for key, leaf in model.parameters().items()}
    good = bare | {PICKLED: saved(tensors)} if name == PICKLED else files
    repository = hub.add(repository_name, good)
    half = len(good[name]) // 2
    repository.transfers[name] = iter([good[name][half:] + good[name][:half]])

    def refused():
        with pytest.raises(FormatError) as caught:
            process.load(repository_name)
        path, _, command = str(caught.value).partition("; if the download was damaged, this repeats it: ")
        assert command == f"hf download {repository_name} {name} --force-download"
        return Path(re.search(rf"{re.escape(str(home))}\S*/{name}", path)[0])

    path = refused()
    path.unlink()
    assert refused() == path  # deleting the link is not enough, as the advice assumes
    process(f"__import__('huggingface_hub').hf_hub_download({repository_name!r}, {name!r}, force_download=True)")
    assert process.load(repository_name) == digest(model)


def test_a_file_that_is_cut_short_on_the_hub(hub, process, files):
    hub.add("o/cut", files | {WHOLE: files[WHOLE][:-100]})
    again = f"repeats it: hf download o/cut {WHOLE} --revision main --force-download"
    with pytest.raises(FormatError, match=f"snapshots/[0-9a-f]{{40}}/{WHOLE}: .* data_offsets must be .* {again}"):
        process.load("o/cut", revision="main")


def test_a_cache_that_cannot_be_written(hub, files, tmp_path):
    hub.add("o/nowhere", files)
    (tmp_path / "file").write_text("")
    with Process(tmp_path / "file" / "home", hub.url) as process:
        with pytest.raises(FileError, match=r"cannot store config\.json of 'o/nowhere' in the cache: "):
            process.load("o/nowhere")


# No network


HANGING_DNS = "exec('import socket, time; socket.getaddrinfo = lambda *_, **__: time.sleep(60)')"


@pytest.mark.parametrize(
    ("before", "endpoint", "environment"),
    [
        ("0", "http://127.0.0.1:9", {}),
        (HANGING_DNS, "http://hub.invalid", {}),
        ("0", "http://hub.invalid", {"HTTP_PROXY": "http://127.0.0.1:9"}),
    ],
    ids=["refused", "hanging look-up", "dead proxy"],
)
def test_no_network_is_noticed_within_three_seconds(tmp_path, before, endpoint, environment):
    with Process(tmp_path, endpoint, **environment) as process:
        process("npgpt.files.hub.reachable(0)")  # imports huggingface_hub, which on a busy machine can take seconds
        process(before)
        start = time.perf_counter()
        with pytest.raises(HubError, match=f"not in the cache .* and {endpoint} cannot be reached .*; name a folder"):
            process.load("gpt2")
        assert time.perf_counter() - start < 3


def test_offline_is_noticed_at_once(tmp_path):
    with Process(tmp_path, "http://hub.invalid", HF_HUB_OFFLINE="1") as process:
        process(HANGING_DNS)
        start = time.perf_counter()
        with pytest.raises(HubError, match="HF_HUB_OFFLINE forbids the download"):
            process.load("gpt2")
        assert not process("npgpt.files.hub.reachable()")
        assert time.perf_counter() - start < 2


# Adapters


def test_an_adapter_from_the_hub_with_the_base_that_it_names(tmp_path, files):
    model = npgpt.GPT2(CONFIG, seed=1)
    model.name_or_path = "o/base"
    npgpt.add_lora(model, npgpt.LoraConfig(r=2, init_lora_weights=False))
    npgpt.save_adapter(model, tmp_path / "adapter")
    with Hub() as hub:
        hub.add("o/base", files)
        hub.add("o/adapter", {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()})
        hub.add("o/empty", {"config.json": b"{}"})
        with Process(tmp_path / "home", hub.url) as process:
            base = process("npgpt.adapters.pretrained.base_name('o/adapter')")
            assert base == "o/base"
            loaded = "npgpt.load_adapter(npgpt.GPT2.from_pretrained('o/base'), 'o/adapter').logits([1, 2, 3]).tolist()"
            assert process(loaded) == model.logits([1, 2, 3]).tolist()
            hub.close()
            assert process(loaded) == model.logits([1, 2, 3]).tolist()  # from the cache
    with Hub() as hub:
        hub.add("o/empty", {"config.json": b"{}"})
        with Process(tmp_path / "home", hub.url) as process, pytest.raises(FileError, match="it is not an adapter"):
            process("npgpt.files.hub.adapter_folder('o/empty')")
