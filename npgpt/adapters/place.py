"""Where an adapter's files are: in a folder, or in a repository on the hub, such as "owner/name"."""

import os
import re
from pathlib import Path

from npgpt.files import hub
from npgpt.runtime.errors import HubError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILES = ("adapter_model.safetensors", "adapter_model.bin")
# Files that an adapter may have too: a tokenizer with tokens that were added for it.
BESIDE = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def folder_of(adapter, revision=None):
    """Return the folder of an adapter as a Path.

    adapter   a folder, or a hub id "owner/name": its files are downloaded into the cache, all of one commit
    revision  branch, tag or commit on the hub

    Raises HubError, and FileError if the cache cannot be read. A folder that does not exist is returned as it is.
    """
    if os.path.exists(adapter) or not isinstance(adapter, str) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", adapter):
        return Path(adapter)
    config = hub.file(adapter, CONFIG_FILE, revision)
    if config is None:
        raise HubError(f"{adapter!r} on the hub is not an adapter: it has no {CONFIG_FILE}; for a model, use --model")
    commit, fresh = config.parent.name, not any((config.parent / name).exists() for name in WEIGHTS_FILES)
    if hub.file(adapter, WEIGHTS_FILES, commit) is None:
        raise HubError(f"{adapter!r} on the hub has neither {' nor '.join(WEIGHTS_FILES)}; look for another copy")
    for name in BESIDE:
        hub.optional(adapter, name, commit, cached=not fresh)
    return config.parent
