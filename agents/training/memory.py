"""Memory that a training program keeps instead of giving it back to the system between steps.

What lives here: one switch of the C library. A step on the CPU frees a gigabyte of activations and asks for them again
a moment later; glibc returns such memory each time, and the system hands it out anew page by page, zeroed: a tenth of
an update. It is a property of the whole process, so programs switch it, never the library.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def keep_freed_memory() -> bool:
    """Let glibc keep what the process frees, for its own next request; returns False where the C library is another.

    The process then holds its peak to the end. The peak itself stays as it is.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
