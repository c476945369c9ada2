"""What a run writes into config.json about itself, and what must be the same if it goes on or is repeated."""

import warnings

from npgpt.files.atomic import read_json
from npgpt.runtime import machine
from npgpt.runtime.errors import ConfigError, NpgptError
from npgpt.runtime.threads import checked
from npgpt.training.run import difference


def description(settings, weights, adapter, training, held_out):
    """Return what config.json holds.

    weights            fingerprint of the base model
    adapter            fingerprint of the adapter that --adapter names; None: the adapter is new, or there is none
    training, held_out data.Encoded, or None
    """
    return {
        "settings": settings,
        "data": {name: e and {"texts": e.texts, "tokens": e.tokens, "learned": e.targets, "fingerprint": e.fingerprint}
                 for name, e in (("training", training), ("held_out", held_out))},
        "model": {"fingerprint": weights} | ({"adapter": adapter} if adapter else {}),
        "versions": machine.versions(),
        "machine": machine.machine(),
    }


def repeat(path, about):
    """If another run has the same settings, take its number of threads, and warn about other differences."""
    before = read_json(path) if path.suffix.lower() != ".toml" and path.is_file() else {}  # a pipe was read already
    if before.get("settings") == about["settings"]:
        about["machine"]["threads"] = threads_of(before, path)
        for what in ("data", "model", "versions"):
            changed = difference(before.get(what), about[what], f"{what}.")
            if changed:
                warnings.warn(f"this is not quite the run of {path}: {changed}", stacklevel=2)


def threads_of(about, place):
    """Return the number of BLAS threads in a run's config.json. Raises NpgptError."""
    written = about.get("machine")
    try:
        return checked(written.get("threads") if isinstance(written, dict) else None)
    except ConfigError as error:
        raise NpgptError(f"{place}: machine.{error}") from error


def check_nothing_changed(run, now):
    """Raise NpgptError if data or model are not those that the run began with, and warn about other versions."""
    before = run.read_config()
    for what in ("data", "model"):
        changed = difference(before.get(what), now[what], f"{what}.")
        if changed:
            raise NpgptError(f"{run.folder} began with other {what}: {changed}; a resumed run goes on as it began")
    changed = difference(before.get("versions"), now["versions"])
    if changed:
        warnings.warn(f"{run.folder} began with other versions: {changed}; the result may differ in its last digits",
                      stacklevel=2)
