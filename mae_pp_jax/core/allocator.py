"""How glibc hands out memory to a process that trains: it keeps what is freed, and in huge pages.

A program on CPUs takes and frees tens to hundreds of MB a step. By default glibc returns them to the system each time
and gets them again as zeroed pages of 4 KiB: 160,000 page faults a step for MAE ViT-S with batches of 8. Kept, the speed
of one core was 1.25 times as high for the demo's models, alternating runs. glibc reads the setting when a process
starts, and not later.
"""

import os
import platform
import sys

VARIABLE = "GLIBC_TUNABLES"
SETTING = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=4294967296"


def restart_tuned() -> None:
    """Starts this process again under the setting, unless the variable is set already or the C library is another."""
    if VARIABLE not in os.environ and platform.libc_ver()[0] == "glibc":
        os.environ[VARIABLE] = SETTING
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
