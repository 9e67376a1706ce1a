"""Memory of the CPU backend: huge pages, and none given back between steps.

XLA asks the C library for fresh buffers in every execution, hundreds of megabytes of them at a time. By default glibc
maps such buffers and unmaps them when they are freed, so that every step pays for the page faults of all its
temporaries, 4 KiB at a time.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h
MADV_HUGEPAGE = 14  # sys/mman.h
HUGE_PAGE = 2**21
ADVISED = 0.75  # share of the machine's memory


def keep_and_advise() -> bool:
    """Has glibc serve large buffers from its heap, keep what is freed, and back the heap by huge pages.

    To be called before XLA begins: threads that have begun keep the heaps they have. The heap is grown, advised and
    handed back to malloc untouched, so that no memory is used for it. For Linux with glibc; elsewhere, where the
    process' memory is limited or the kernel counts what is not used yet, and where the environment tunes malloc itself,
    nothing changes. Returns whether it was done.
    """
    tuned = any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ)
    if tuned or not sys.platform.startswith("linux") or _limited():
        return False
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1))  # one heap: XLA's threads have no other
    if not all(library.mallopt(name, value) for name, value in settings):
        return False
    size = int(ADVISED * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    block = library.malloc(size)
    if not block:
        return False
    start = -(-block // HUGE_PAGE) * HUGE_PAGE
    advised = library.madvise(start, (block + size - start) // HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE) == 0
    library.free(block)
    return advised


def _limited() -> bool:
    """Whether the heap cannot be grown beyond what is used: by a limit, or since all that is asked for is counted."""
    import resource

    kinds = (resource.RLIMIT_DATA, resource.RLIMIT_AS)
    if any(resource.getrlimit(kind)[0] != resource.RLIM_INFINITY for kind in kinds):
        return True
    try:
        return pathlib.Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip() == "2"
    except OSError:
        return False
