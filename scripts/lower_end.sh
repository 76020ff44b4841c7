#!/usr/bin/env bash
# Run the tests of model and decoding on the oldest libraries that captune supports, in a separate virtual environment:
#
#     scripts/lower_end.sh [FOLDER]       default FOLDER: runs/lower-end
#
# TORCH and TRANSFORMERS name other versions (TORCH=2.13.0+cpu where there is a CPU build), PYTHON another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV="${1:-runs/lower-end}"
TRANSFORMERS="${TRANSFORMERS:-5.17.*}"
TORCH="${TORCH:-2.11.*}"

"${PYTHON:-python3}" -m venv "$VENV"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
  "torch==$TORCH" "transformers==$TRANSFORMERS" \
  accelerate imagehash peft 'numpy>=2' 'pillow>=13' protobuf 'pydantic>=2.9' 'pyyaml>=6' 'rich>=13' safetensors sentencepiece \
  'typer>=0.29' matplotlib hypothesis pytest
"$VENV/bin/python" -c 'import torch, transformers; print("torch", torch.__version__, "transformers", transformers.__version__)'
exec "$VENV/bin/python" -m pytest tests/model tests/decoding -q -p no:cacheprovider
