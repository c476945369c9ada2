"""Where a model's files are: in this package, in a folder, in the Hugging Face cache, or on the hub.

A file in the cache is used as it is, and the hub is not asked for a newer one (`hf download NAME` fetches it). So a
cached model loads without the network. Only a file that is not in the cache is downloaded, into the same cache.
huggingface_hub does the work. It has its own environment variables (HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE,
..) and reads them at its first import. This import is slow, so it happens only when someone asks for a hub id.
"""

import contextlib
import os
import re
import threading
import urllib.request
from pathlib import Path

from npgpt.runtime.errors import ConfigError, FileError, FormatError, HubError

TINY = Path(__file__).parents[1] / "tiny"
# In order of preference. An .index.json lists the shards of a model that was too large for one file.
WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"
)  # fmt: skip
INSTEAD = 'name a folder instead, or "tiny", the model in this package'


def file(name, filename, revision=None, local_files_only=False):
    """Return the path of a file of the model `name`, or None if the model has no such file.

    name                "tiny" (the model in this package), a folder, or a hub id ("gpt2", "distilbert/distilgpt2")
    filename            the file's name, or a tuple of alternatives: the first that is found is returned
    revision            branch, tag or commit on the hub; None is its main branch
    local_files_only    do not use the network, as with HF_HUB_OFFLINE=1

    All alternatives are looked for in the cache before any is looked for on the hub. If the hub cannot be reached, this
    is known after two seconds (or HF_HUB_ETAG_TIMEOUT); huggingface_hub's own retries take over twenty.
    Raises ConfigError (unusable name or revision), FileError (no such folder) and HubError (the hub or the network).
    """
    filenames = (filename,) if isinstance(filename, str) else filename
    place = folder(name)
    if place is not None:
        if revision is not None:
            raise ConfigError(f"revision {revision!r} is for a model on the hub, but {name} is a folder; leave it out")
        for path in (place / each for each in filenames):
            if os.path.isfile(path):  # False for odd names
                return path
            if os.path.islink(path):
                raise FileError(f"{path} is a link to {os.readlink(path)}, where no file is: fetch the file again")
        return None

    from huggingface_hub import constants

    found = {each: _in_cache(name, each, revision) for each in filenames}
    for path in filter(None, found.values()):
        return path
    unknown = [each for each in filenames if found[each] is None]
    if not unknown:
        return None
    missing = (f"there is no folder {name} here, and {' or '.join(unknown)} of {name!r} is not in the cache "
               f"{constants.HF_HUB_CACHE}")
    if local_files_only or constants.HF_HUB_OFFLINE:
        reason = "local_files_only" if local_files_only else "HF_HUB_OFFLINE"
        raise HubError(f"{missing} and {reason} forbids the download; {INSTEAD}")
    errors = []
    if not reachable(None, errors):
        reason = _network(errors[0]) if errors else f"no answer in {patience():g} s, or a server error"
        wait = "" if errors else "; HF_HUB_ETAG_TIMEOUT=10 makes it wait 10 s"
        raise HubError(f"{missing} and {constants.ENDPOINT} cannot be reached ({reason}); {INSTEAD}{wait}")
    # Every model has a config.json. All files come from the commit of this one, even if the branch has moved on.
    config = _in_cache(name, "config.json", revision)
    commit = config.parent.name if config else revision
    return next(filter(None, (_download(name, each, commit) for each in unknown)), None)


def optional(name, filename, revision=None, cached=False):
    """Return the path of a file that a model may lack, or None. Arguments and errors are those of `file`.

    cached  look into the folder or the cache only
    """
    if folder(name) is not None or not cached:
        return file(name, filename, revision)
    return _in_cache(name, filename, revision) or None


@contextlib.contextmanager
def reading(name, filename, revision=None):
    """Add to a FormatError inside this block how to download the file of the model `name` again.

    This needs a command. The file in the cache is only a link: after deleting it, a download finds the same bytes.
    """
    try:
        yield
    except FormatError as error:
        if folder(name) is not None:
            raise
        again = f"hf download {name} {filename}{f' --revision {revision}' if revision else ''} --force-download"
        raise FormatError(f"{error}; if the download was damaged, this repeats it: {again}") from error


def folder(name):
    """Return the folder of the model `name`, or None for a hub id. Raises ConfigError, FileError."""
    if not isinstance(name, str | Path) or not str(name):
        raise ConfigError(f"{name!r} names no model; a folder or a hub id would be right")
    if name == "tiny":
        return TINY
    if os.path.isdir(name):
        return Path(name)
    if os.path.exists(name):
        raise FileError(f"{name} is a file; a model is a folder with config.json and {WEIGHTS[0]}")
    looks_like_path = os.path.isabs(name) or len(Path(name).parts) > 2 or str(name).startswith((".", "~"))
    if looks_like_path or isinstance(name, Path):
        raise FileError(f"there is no folder {name}; {INSTEAD}")
    return None


def adapter_folder(name):
    """Return the folder of an adapter's files, as a Path.

    name  a folder; or the hub id of an adapter, "owner/name", whose files are then downloaded into the cache. A name
          whose first part is a folder here is a folder that does not exist, and no hub id

    Raises FileError if there is no such adapter on the hub, and HubError.
    """
    place = Path(name)
    if os.path.exists(place) or place.is_absolute() or len(place.parts) != 2 or os.path.isdir(place.parts[0]):
        return place
    config = file(str(name), "adapter_config.json")
    if config is None:
        raise FileError(f"{name!r} on the hub has no adapter_config.json: it is not an adapter of PEFT")
    commit, weights = config.parent.name, ("adapter_model.safetensors", "adapter_model.bin")
    complete = any(os.path.isfile(config.parent / each) for each in weights)
    file(str(name), weights, commit)
    for beside in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "npgpt_data.json"):
        optional(str(name), beside, commit, cached=complete)  # all into one folder of the cache
    return config.parent


def cached(name, revision=None):
    """Tell whether `name` needs no download: it is a folder, or the cache has configuration, weights and tokenizer."""
    if folder(name) is not None:
        return True
    parts = (("config.json",), WEIGHTS, ("tokenizer.json", "vocab.json"))
    return all(any(_in_cache(name, each, revision) for each in alternatives) for alternatives in parts)


def patience():
    """Return how many seconds to wait for the hub's first answer: HF_HUB_ETAG_TIMEOUT if it is set, else 2."""
    from huggingface_hub import constants

    return constants.HF_HUB_ETAG_TIMEOUT if "HF_HUB_ETAG_TIMEOUT" in os.environ else 2.0


def reachable(timeout=None, errors=None):
    """Tell within `timeout` seconds (None: `patience`) whether the hub answers; False at once if HF_HUB_OFFLINE is set.

    errors  a list: if the request fails, its exception is appended

    A thread asks, and is left behind after these seconds: no timeout of a request covers the look-up of the host's
    name, which can take much longer. A server error (usually a proxy's) counts as no answer.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    answers, timeout = [], patience() if timeout is None else timeout

    def ask():
        try:
            answers.append(get_session().head(constants.ENDPOINT, timeout=timeout))
        except Exception as error:  # whatever failed, there was no answer
            if errors is not None:
                errors.append(error)

    if not constants.HF_HUB_OFFLINE:
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(timeout)
    return any(answer.status_code < 500 for answer in answers)


def data_folder(name, patterns, revision=None):
    """Return the folder, in the cache, of the data set `name` on the hub: the files that fit one of `patterns`.

    Only what is not in the cache is downloaded. If the hub cannot be reached, what the cache has is used.
    Raises HubError (the hub or the network, or nothing is in the cache) and FileError (the cache).
    """
    from huggingface_hub import constants, errors, snapshot_download

    online = reachable()
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=patterns,
                                      local_files_only=not online))
    except errors.GatedRepoError as error:
        raise HubError(f"the data set {name!r} is gated: ask for access on {constants.ENDPOINT}/datasets/{name}, then "
                       "log in with `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(f"there is no data set {name!r} on {constants.ENDPOINT}; a private one needs `hf auth login`"
                       ) from error
    except errors.LocalEntryNotFoundError as error:
        if online:
            raise _explain(error.__cause__ or error, name, "the data", revision) from error
        raise HubError(f"the data set {name!r} is not in the cache {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} "
                       "cannot be reached; name a file or a folder instead") from error
    except Exception as error:  # which classes the transport raises depends on huggingface_hub's version
        raise _explain(error, name, "the data", revision) from error


def _in_cache(name, filename, revision):
    """Return the file's path in the cache, None if it is not there, False if the cache knows that it does not exist."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    if revision is not None and not (isinstance(revision, str) and revision):
        raise ConfigError(f"revision {revision!r} cannot be used: a branch, tag or commit would be right")
    try:
        found = try_to_load_from_cache(name, filename, revision=revision)
    except ValueError as error:
        raise FileError(f"{name!r} is neither a folder nor a hub id; a hub id is a name or owner/name") from error
    except OSError as error:
        raise FileError(f"cannot read the cache of {name!r}: {error}") from error
    return False if found is _CACHED_NO_EXIST else found and Path(found)


def _download(name, filename, revision):
    """Download the file into the cache and return its path, or None if the model has no such file."""
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(name, filename, revision=revision))
    except errors.LocalEntryNotFoundError as error:  # an EntryNotFoundError too, but about the cache
        raise _explain(error.__cause__ or error, name, filename, revision) from error
    except errors.EntryNotFoundError:
        return None
    except Exception as error:  # which classes the transport raises depends on huggingface_hub's version
        raise _explain(error, name, filename, revision) from error


def _explain(error, name, filename, revision):
    """Return a one-line error for an error of huggingface_hub."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    if isinstance(error, errors.GatedRepoError):
        return HubError(f"{name!r} is gated: ask for access on {hub}/{name}, then log in with `hf auth login`")
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubError(f"{name!r} is neither a folder here nor a model on {hub}; a private one needs `hf auth login`")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{name!r} has no revision {revision!r} on {hub}; a branch, tag or commit would be right")
    if isinstance(error, errors.FileMetadataError):
        return HubError(f"{hub} does not answer like a Hugging Face hub; check HF_ENDPOINT and the proxy settings")
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status == 407:
            return HubError(f"{hub} answered 407 for {filename} of {name!r}: {_network(error)}")
        token = "; check the name and the token, or log in with `hf auth login`" if status in (401, 403) else ""
        return HubError(f"{hub} answered {status} for {filename} of {name!r}{token}")
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError | TimeoutError):
        return FileError(f"cannot store {filename} of {name!r} in the cache: {error}")
    return HubError(f"cannot download {filename} of {name!r} from {hub}: {_network(error)}; try again, or {INSTEAD}")


def _network(error):
    """Return one line that says why a request failed, and what to do about it if that is known."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return (f"its certificate cannot be verified ({said}); if your network puts its own certificate between, name "
                "the certificate's file in SSL_CERT_FILE")
    if "407" in said:
        return (f"the proxy asks for a name and a password ({said}); write them into HTTPS_PROXY: "
                "http://NAME:PASSWORD@HOST:PORT")
    if isinstance(error, FileNotFoundError):
        return f"SSL_CERT_FILE or SSL_CERT_DIR names a file that is not there ({said})"
    if isinstance(error, ValueError) or type(error).__name__ in ("InvalidURL", "UnsupportedProtocol"):
        return f"the address of the hub or of the proxy is wrong ({said}); see HF_ENDPOINT, HTTPS_PROXY and ALL_PROXY"
    proxy = re.sub("//[^/]*@", "//", urllib.request.getproxies().get("https", ""))  # without a password
    return f"{said}, through the proxy {proxy}" if proxy else said
