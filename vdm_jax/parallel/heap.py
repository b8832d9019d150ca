"""What glibc does with memory that a process has freed. Another C library is left as it is."""

import ctypes
import platform
from collections.abc import Callable


def keep_freed() -> None:
    """Tells glibc to keep freed buffers instead of handing them back to the kernel.

    On the CPU every compiled call allocates its temporaries anew, as one buffer. Mapping, zeroing
    and unmapping it is a fifth of a training step. It is kept only in the heap of the main thread,
    which has to be the one that allocates it: see `cli.common.setup`.
    """
    if mallopt := _glibc("mallopt"):
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)
        mallopt(top_pad, 2**28)


def trim() -> None:
    """Hands what is free back to the kernel, once: after compiling, whose garbage is as large as
    a small network's step."""
    if malloc_trim := _glibc("malloc_trim"):
        malloc_trim(0)


def _glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if platform.libc_ver()[0] == "glibc" else None
