"""Where a model is looked for. tests/hub has the tests of downloads."""

import threading
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

import npgpt
from npgpt.files import hub
from npgpt.runtime.errors import ConfigError, FileError, HubError

REACHABLE = hub.reachable  # the fixture `cache` replaces it
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache and no network: a test that uses the network fails."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("downloaded"))
    monkeypatch.setattr(hub, "reachable", lambda *_: pytest.fail("asked the network"))
    return tmp_path / "cache"


def http_error(kind, status):
    return kind("two\nlines", response=SimpleNamespace(status_code=status, headers={}, request=None))


class TransportError(Exception):
    """Stands for the errors of the HTTP library below huggingface_hub."""


def put_in_cache(cache, repo, filename, ref="main", commit=COMMIT, absent=False):
    """Add a file to the cache as huggingface_hub does, or its mark that the model has no such file."""
    base = cache / f"models--{repo.replace('/', '--')}"
    path = base / (".no_exist" if absent else "snapshots") / commit / filename
    (base / "refs").mkdir(parents=True, exist_ok=True)
    (base / "refs" / ref).write_text(commit)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(filename)
    return path


def test_folders_and_tiny(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for name in (tmp_path, str(tmp_path)):
        assert hub.file(name, "config.json") == tmp_path / "config.json"
        assert hub.file(name, "none") is None
        assert hub.file(name, ("none", "config.json")) == tmp_path / "config.json"
        assert hub.cached(name)
    assert hub.folder("tiny") == Path(npgpt.__file__).parent / "tiny"
    assert hub.folder("gpt2") is None
    assert hub.folder("openai-community/gpt2") is None
    with pytest.raises(ConfigError, match="revision 'v1' is for a model on the hub"):
        hub.file(tmp_path, "config.json", revision="v1")


@pytest.mark.parametrize("name", ["./none", "../none", "/none", "~/none", "a/b/none", Path("none")])
def test_what_looks_like_a_path_is_not_looked_for_on_the_hub(cache, name):
    with pytest.raises(FileError, match=f"there is no folder {name}; name a folder instead"):
        hub.file(name, "config.json")


def test_unusable_names(cache, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"file is a file; a model is a folder with config.json"):
        hub.file(tmp_path / "file", "config.json")
    for name in ("", None, 3):
        with pytest.raises(ConfigError, match="names no model; a folder or a hub id"):
            hub.file(name, "config.json")
    for name in ("a--b", "-a", "a b", "a" * 300, "a\0"):
        with pytest.raises(FileError, match="is neither a folder nor a hub id"):
            hub.file(name, "config.json")
    for revision in ("", 3):
        with pytest.raises(ConfigError, match=f"revision {revision!r} cannot be used"):
            hub.file("gpt2", "config.json", revision)


def test_the_cache_is_used_without_the_network(cache):
    config = put_in_cache(cache, "o/m", "config.json")
    assert hub.file("o/m", "config.json") == config
    assert hub.file("o/m", ("model.safetensors", "config.json")) == config  # alternatives: what is here comes first
    assert hub.file("o/m", "config.json", revision=COMMIT) == config
    assert not hub.cached("o/m")
    put_in_cache(cache, "o/m", "model.safetensors")
    assert not hub.cached("o/m")  # no tokenizer yet
    put_in_cache(cache, "o/m", "vocab.json")
    assert hub.cached("o/m")
    assert hub.cached("o/m", COMMIT)
    assert not hub.cached("o/m", "v1")
    put_in_cache(cache, "o/m", "added_tokens.json", absent=True)
    assert hub.file("o/m", "added_tokens.json") is None


@pytest.mark.parametrize("reason", ["local_files_only", "HF_HUB_OFFLINE"])
def test_nothing_is_downloaded_where_that_is_forbidden(cache, monkeypatch, reason):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", reason == "HF_HUB_OFFLINE")
    with pytest.raises(HubError, match=f"config.json of 'gpt2' is not in the cache .* and {reason} forbids"):
        hub.file("gpt2", "config.json", local_files_only=reason == "local_files_only")


def test_downloads_stay_at_the_commit_of_config_json(cache, monkeypatch):
    asked = []

    def download(name, filename, revision):
        asked.append((name, filename, revision))
        if filename == "absent":
            raise http_error(errors.RemoteEntryNotFoundError, 404)
        return put_in_cache(cache, name, filename)

    monkeypatch.setattr(hub, "reachable", lambda *_: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert hub.file("o/m", "config.json", "v1").name == "config.json"
    assert hub.file("o/m", ("absent", "b", "c")).name == "b"
    assert hub.file("o/m", "absent") is None
    assert asked == [("o/m", "config.json", "v1"), *(("o/m", name, COMMIT) for name in ("absent", "b", "absent"))]


def not_found_because(cause):
    error = errors.LocalEntryNotFoundError("long\nstory")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (http_error(errors.RepositoryNotFoundError, 404), HubError, "'o/m' is neither a folder here nor a model on"),
        (http_error(errors.GatedRepoError, 403), HubError, "'o/m' is gated: ask for access on"),
        (http_error(errors.RevisionNotFoundError, 404), HubError, "'o/m' has no revision 'v1' on .*; a branch"),
        (http_error(errors.HfHubHTTPError, 401), HubError, "answered 401 for config.json of 'o/m'; check the name"),
        (not_found_because(http_error(errors.HfHubHTTPError, 503)), HubError, "answered 503 for config.json of 'o/m'"),
        (not_found_because(errors.FileMetadataError("no etag")), HubError, "does not answer like a Hugging Face hub"),
        (not_found_because(TransportError("refused\nx")), HubError, "cannot download config.json .*: refused; try"),
        (TransportError(""), HubError, "cannot download config.json of 'o/m' from .*: TransportError; try again"),
        (OSError("Consistency check failed"), HubError, "cannot download .*: Consistency check failed; try again"),
        (ConnectionResetError(104, "reset"), HubError, "cannot download config.json .*reset"),
        (PermissionError(13, "denied"), FileError, "cannot store config.json of 'o/m' in the cache"),
    ],
)
def test_what_huggingface_hub_raises_becomes_one_line(cache, monkeypatch, raised, kind, message):
    def download(*_, **__):
        raise raised

    monkeypatch.setattr(hub, "reachable", lambda *_: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(kind, match=message) as caught:
        hub.file("o/m", "config.json", "v1")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is raised


@pytest.mark.parametrize(
    ("answer", "expected"), [(200, True), (404, True), (502, False), (TransportError(), False), (None, False)]
)
def test_reachable(monkeypatch, answer, expected):
    asked, done = [], threading.Event()

    def head(url, timeout):
        asked.append((url, timeout))
        if answer is None:
            done.wait(30)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(status_code=answer)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: SimpleNamespace(head=head))
    assert hub.reachable(timeout=0.2) is expected
    assert asked == [(constants.ENDPOINT, 0.2)]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.reachable() is False
    assert len(asked) == 1
    done.set()


@pytest.mark.parametrize("error, message", [
    (TransportError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"), r"its certificate .* in SSL_CERT_FILE"),
    (TransportError("407 Proxy Authentication Required"), r"the proxy asks for a name .*407 .*HTTPS_PROXY"),
    (ValueError("Unknown scheme for proxy URL URL('foo')"), r"the hub or of the proxy is wrong \(Unknown"),
    (FileNotFoundError(2, "No such file or directory"), "SSL_CERT_FILE or SSL_CERT_DIR names a file that is not there"),
    (TransportError("[Errno 111] Connection refused"), r"cannot be reached \(\[Errno 111\] Connection refused\);"),
])
def test_why_the_network_failed(cache, monkeypatch, error, message):
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    def head(url, timeout):
        raise error

    monkeypatch.setattr(hub, "reachable", REACHABLE)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: SimpleNamespace(head=head))
    with pytest.raises(HubError, match=message) as caught:
        hub.file("o/m", "config.json")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"https": "http://me:secret@proxy:3128"})
    with pytest.raises(HubError) as through:
        hub.file("o/m", "config.json")
    assert ("refused, through the proxy http://proxy:3128" in str(through.value)) == ("refused" in str(error))
    assert "secret" not in str(through.value)


def test_how_long_to_wait_for_the_hub(monkeypatch):
    """HF_HUB_ETAG_TIMEOUT lengthens the wait, for the default model too."""
    monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
    assert hub.patience() == 2
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "7")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 7)  # it reads the variable at its import
    assert hub.patience() == 7
