"""What was freed is given back, in a process of its own."""

import subprocess
import sys

import pytest

SCRIPT = """
import psutil
from mralign_core.processes.memory import return_freed_memory
rss = lambda: psutil.Process().memory_info().rss / 2**20
small = rss()
kept, freed = [], []
for _ in range(200_000):  # pieces too small to be given back one by one, some of them kept between
    freed.append(bytearray(1_000))
    if len(freed) % 100 == 0:
        kept.append(bytearray(1_000))
large = rss()
del freed
return_freed_memory()
print(small, large, rss())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc keeps what is freed, other C libraries may not")
def test_what_was_freed_in_pieces_is_given_back():
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    small, large, after = map(float, found.stdout.split())
    assert large - small > 150
    assert after - small < 40
