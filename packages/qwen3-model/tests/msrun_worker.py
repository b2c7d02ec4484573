"""A worker under MindSpore's own msrun: adds up ranks and reports steps."""

import json
import os
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.communication import get_group_size, get_rank, init


class Sum(nn.Cell):
    """Add up over all ranks."""

    def __init__(self):
        super().__init__()
        self.all_reduce = ops.AllReduce()

    @ms.jit
    def construct(self, x):
        return self.all_reduce(x)


ms.set_device("CPU")
init()
metrics, add = Path(sys.argv[1]), Sum()
for step in range(1, int(sys.argv[2]) + 1):
    total = add(Tensor(np.full(4, get_rank() + 1, np.float32))).asnumpy()[0]
    if get_rank() == get_group_size() - 1:
        with metrics.open("a", encoding="utf-8") as file:
            file.write(
                json.dumps({"step": step, "loss": float(total), "pids": [os.getpid(), os.getppid()]}) + "\n"
            )
    time.sleep(0.1)
