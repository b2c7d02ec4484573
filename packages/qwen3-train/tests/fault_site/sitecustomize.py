"""Python reads this at its start: lets a process fail when it brings a certain file to the disk.

QWEN3_TEST_FAULT is JSON: {"file": part of its temporary name, "kind": "kill", "full" or "wait",
"marker": a path that is written when it happens, "once": whether it happens no more where that is there}.
"""

import errno
import json
import os
import signal
import time

if told := os.environ.get("QWEN3_TEST_FAULT"):
    fault, fsync = json.loads(told), os.fsync

    def faulty_fsync(descriptor):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115, PTH119
        is_over = fault.get("once") and os.path.exists(fault["marker"])  # noqa: PTH110
        if fault["file"] in name and name.endswith(".tmp") and not is_over:
            with open(fault["marker"], "w", encoding="utf-8") as marker:  # noqa: PTH123
                marker.write(str(time.time()))
            if fault["kind"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault["kind"] == "wait":
                time.sleep(120)
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    os.fsync = faulty_fsync
