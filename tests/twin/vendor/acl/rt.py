"""acl.rt."""

import ctypes


def memcpy(dst: int, dest_max: int, src: int, count: int, kind: int) -> int:
    ctypes.memmove(dst, src, count)
    return 0
