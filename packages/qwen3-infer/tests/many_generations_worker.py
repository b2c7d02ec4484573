"""A worker of msrun that runs one `qwen3-infer generate` after the other: many checks for one start.

Usage: many_generations_worker.py RUNS, a JSON list of [arguments, environment of rank 1 meanwhile].
"""

import json
import os
import sys
from pathlib import Path

from qwen3_infer.cli import main
from qwen3_infer.processes.rank import Rank
from qwen3_model.ranks.msrun.records import LOG_DIR_VARIABLE

rank = Rank(number=int(os.environ["RANK_ID"]), log_dir=Path(os.environ[LOG_DIR_VARIABLE]))
own = dict(os.environ)
for arguments, environment in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
    os.environ.update(own | (environment if rank.number == 1 else {}))
    main.main(["generate", *arguments], obj=rank, standalone_mode=False)
