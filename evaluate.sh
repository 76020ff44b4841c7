#!/usr/bin/env bash
# Caption and score the pretrained model and every epoch of the run of a configuration, on the same images.
# Usage: bash evaluate.sh [CONFIG] [section.key=value ...]
set -euo pipefail
cd "$(dirname "$0")"
config="${1:-train_configs/minigpt4_flickr_finetune.yaml}"
shift || true
python=python
if [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
exec "$python" eval_scripts/eval_flickr30k.py --cfg-path "$config" ${1:+--options "$@"}
