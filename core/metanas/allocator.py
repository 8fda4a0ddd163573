"""Keep freed memory instead of giving it back to the kernel after every tensor.

Feature maps of a few MB are freed and asked for again thousands of times a minute; by default
glibc unmaps each of them, and the kernel clears every page anew.
"""

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep what this process frees.

    Returns:
        False where there is no glibc; nothing has changed then, and results never do.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, (1 << 31) - 1), (_M_TOP_PAD, 64 << 20))
    return all(mallopt(option, value) == 1 for option, value in settings)
