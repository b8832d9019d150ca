"""What every test shares: programs compiled quickly rather than well, and kept between runs."""

import gc
import os
import signal
import sys
from pathlib import Path

import pytest

# Test programs run for milliseconds and compile for seconds: half the compile time is LLVM's
# effort to make them faster. Read by XLA when it starts, so before JAX is imported.
_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# The older way to compile fused loops takes half the time again.
_QUICK += " --xla_cpu_use_fusion_emitters=false"
# Every test process has a core: to compile the parts of a program side by side only adds work.
_QUICK += " --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = f"{_QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()
# libtpu, installed for vdm compile, is not to be loaded by every test that runs JAX.
if not Path("/dev/nvidia0").exists():
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A shell that starts the tests in its background has them, and all that they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
_CACHE = Path(__file__).parents[1] / ".pytest_cache" / "xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Python looks for cycles after every 700 new objects, and JAX tidies up each time. Tracing makes
# millions of objects: that was a thirtieth of all time.
gc.set_threshold(50_000, 10, 10)

_MUCH = 2 << 30  # bytes of memory in use, after which programs of earlier files are given up


@pytest.fixture(autouse=True, scope="module")
def _memory():
    """Between two files, gives back what programs hold that are not called any more."""
    yield
    pages = Path("/proc/self/statm")
    if "jax" not in sys.modules or not pages.exists():
        return
    if int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > _MUCH:
        import jax

        from vdm_jax.parallel import heap

        jax.clear_caches()
        gc.collect()
        heap.trim()
