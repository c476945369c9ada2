import os
import platform
import subprocess
import sys
from pathlib import Path

import npgpt

FAULTS = """
import resource, sys
import numpy as np
from npgpt.memory import keep_freed_memory

if "keep" in sys.argv:
    keep_freed_memory()

def step():
    arrays = [np.empty(3_000_000, np.uint8) for _ in range(4)]
    for array in arrays:
        array.fill(1)

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*arguments):
    environment = os.environ | {"PYTHONPATH": str(Path(npgpt.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", FAULTS, *arguments], env=environment, capture_output=True, check=True)
    return int(done.stdout)


if platform.libc_ver()[0] == "glibc":

    def test_memory_that_was_freed_is_used_again_without_asking_the_system():
        assert page_faults("keep") < 10
        assert page_faults() > 1000  # of 2,930 pages: what this is there to spare
