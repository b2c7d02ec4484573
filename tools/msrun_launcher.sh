#!/usr/bin/env bash
# Take the arguments of mindformers' scripts/msrun_launcher.sh and start the same job with this project's commands:
# `qwen3-train launch`, or `qwen3-infer generate` where run_mode is predict.
#
#   tools/msrun_launcher.sh "run_mindformer.py --config X.yaml ..."                       8 devices of this machine
#   tools/msrun_launcher.sh "run_mindformer.py ..." WORKER_NUM
#   tools/msrun_launcher.sh "run_mindformer.py ..." WORKER_NUM MASTER_PORT LOG_DIR JOIN CLUSTER_TIME_OUT
#   tools/msrun_launcher.sh "run_mindformer.py ..." WORKER_NUM LOCAL_WORKER MASTER_ADDR MASTER_PORT NODE_RANK \
#     LOG_DIR JOIN CLUSTER_TIME_OUT
#
# The command is printed before it starts. docs/migration.md says what is handed on and what is not.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
export PATH="$PATH:$root/.venv/bin"
exec python3 "$root/tools/lib/msrun_launcher.py" "$@"
