"""Every annotation of flowjax is checked at run time in the tests; eight virtual devices stand in for an accelerator pod.

The tests run many small programs once each, so nearly all their time is compilation. XLA is asked to compile quickly
rather than well, and keeps what it has compiled in a folder that lives as long as the session: the two workers, and the
processes that whole-run tests start, then compile each program once between them.
"""

import gc
import os
import pathlib
import shutil
import tempfile
from importlib.metadata import version

import pytest
from jaxtyping import install_import_hook

# Eight devices share the machine's cores with other tests: one of them may come late to a collective.
PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds=120"
FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0", PATIENCE]
if version("jaxlib").startswith("0.10."):  # XLA aborts on flags it does not know, and this one is on its way out
    FLAGS += ["--xla_cpu_use_fusion_emitters=false"]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))

OWN_CACHE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the workers of pytest-xdist inherit it from the process above them
    OWN_CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="flowjax_tests_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

install_import_hook("flowjax", "typecheck.checker")

import jax  # noqa: E402  (the variables above are read when it is imported)

MAPS = pathlib.Path("/proc/self/maps")
MOST_MAPS = 12_000


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forgets compiled programs once there are many, after a file of tests.

    A program on the CPU holds six maps of memory; Linux grants a process 65,530, and the compiler crashes at the last one.
    """
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


def pytest_unconfigure():
    """Removes the compiled programs of this session."""
    if OWN_CACHE:
        shutil.rmtree(OWN_CACHE, ignore_errors=True)
