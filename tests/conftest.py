"""What all tests share."""

import atexit
import ctypes
import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

# Before the first import of JAX, so that two workers on one GPU do not each take most of its memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

# Most of the time of these tests is compilation of small programs that run once: without LLVM's optimisation and XLA's
# emitters of fused loops, which go through MLIR, it takes less than half of it. An XLA that does not know the extra
# option ignores it. XLA_FLAGS in the environment, even empty, has programs compiled as users have them.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters=true",
)

# What one has compiled the others load, in all workers and in the commands that tests start, which inherit the
# variables. The folder goes with the run.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="pseudocoreset-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax
import pytest

ROOT = Path(__file__).resolve().parents[1]


MOST_RESIDENT = 2_200_000_000  # bytes of a worker, beyond which it gives back what can be made again


def give_memory_back() -> None:
    """Let go of compiled programs: they take memory, and memory maps, which Linux counts.

    What is compiled again comes from the folder of compiled programs.
    """
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        # What the compiler freed stays with the process, unless it is asked for.
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture(autouse=True, scope="module")
def few_compiled_programs():
    """Compiled programs go after each file."""
    yield
    give_memory_back()


@pytest.fixture(autouse=True)
def little_memory():
    """And within a file that compiles many."""
    yield
    statm = Path("/proc/self/statm")
    if statm.exists() and int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > MOST_RESIDENT:
        give_memory_back()


@pytest.fixture(autouse=True)
def no_figures():
    """Figures that a test left open are closed: pyplot keeps them, and warns of many."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of prepared public datasets beside the checkout; the test is skipped where there is none."""
    folder = Path(os.environ.get("PSEUDOCORESET_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}; PSEUDOCORESET_SHARED_DATA names another")
    return folder
