"""The machine and the software of a run: a result cannot be compared with another without them."""

import importlib.metadata
import os
import platform

import numpy as np

from npgpt.runtime.threads import available, blas


def versions():
    """Return dict name -> version for all that decides the bits of a result, down to the kernels of NumPy's BLAS."""
    try:
        own = importlib.metadata.version("npgpt")
    except importlib.metadata.PackageNotFoundError:
        own = "not installed"
    found = {"npgpt": own, "python": platform.python_version(), "numpy": np.__version__}
    for info in blas().info():
        found[info["internal_api"]] = f"{info['version']}, kernels for {info.get('architecture', 'an unknown CPU')}"
    return found


def machine():
    """Return a dict of JSON values: system, processor, cores, and how many threads BLAS would use."""
    return {"system": f"{platform.system()} {platform.machine()}", "processor": _processor(), "cores": os.cpu_count(),
            "threads": available()}


def _processor():
    """Return the name of the processor. On Linux, `platform.processor` often does not know it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"
