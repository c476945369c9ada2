"""Python in a process of its own, which evaluates one expression after another.

huggingface_hub reads its environment when it is imported, so each environment takes a process.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

import npgpt
import npgpt.adapters.pretrained
import npgpt.files.hub
from npgpt.runtime import errors

ROOT = Path(__file__).parents[2]
TIMEOUT = 60  # seconds


class Process:
    """A process with an environment in which huggingface_hub knows nothing but what it is given; a context manager."""

    def __init__(self, home, endpoint, **environment):
        ours = ("HF_", "HUGGING", "TRANSFORMERS_")
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(ours) and not name.lower().endswith("_proxy")
        }
        self._stderr = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", __file__],
            env=kept | {"PYTHONPATH": str(ROOT), "HF_HOME": str(home), "HF_ENDPOINT": endpoint} | environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, text=True, bufsize=1,
        )  # fmt: skip

    def __call__(self, expression):
        """Return the value of an expression of JSON types, in which npgpt is imported, or raise npgpt's error."""
        watchdog = threading.Timer(TIMEOUT, self._process.kill)
        watchdog.start()
        try:
            self._process.stdin.write(json.dumps(expression) + "\n")
            answer = json.loads(self._process.stdout.readline() or '{"error": "the process has ended"}')
        finally:
            watchdog.cancel()
        if "value" in answer:
            return answer["value"]
        kind = getattr(errors, answer["error"], None)
        if kind is None:
            raise AssertionError(answer["error"] + "\n" + self.stderr())
        assert "\n" not in answer["message"]
        raise kind(answer["message"])

    def load(self, name, **options):
        """Return the digest of the model."""
        return self(f"digest(npgpt.GPT2.from_pretrained({name!r}, **{options!r}))")

    def kill(self):
        self._process.kill()

    def stderr(self):
        self._stderr.seek(0)
        return self._stderr.read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait(TIMEOUT)
        self._process.stdout.close()
        self._stderr.close()


def digest(model):
    """One number, in hexadecimal, of a model's configuration and all of its weights."""
    found = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(model.parameters().items()):
        found.update(name.encode() + tensor.data.tobytes())
    return found.hexdigest()


def serve():
    names = {"npgpt": npgpt, "digest": digest}
    for line in sys.stdin:
        try:
            answer = {"value": eval(json.loads(line), names)}
        except npgpt.NpgptError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
