#!/bin/sh
# Create .venv from the hashed lock files: `make setup`.
set -eu
cd "$(dirname "$0")/.."
"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || {
    echo "setup: $PYTHON is not Python 3.11 or 3.12: give another, as in make PYTHON=python3.12" >&2
    exit 1
}
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
pip=".venv/bin/python -m pip --disable-pip-version-check -q install --no-deps --require-hashes"
$pip -r requirements-uv.lock
# Scripts such as .venv/bin/dvc find Python beside themselves, so the folder can be moved or copied.
.venv/bin/uv venv -q --relocatable --allow-existing --python "$PYTHON" .venv

if [ "$TORCH" = auto ]; then
    TORCH=cpu
    if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then TORCH=cuda; fi
    auto=yes
fi
if [ "$TORCH" = cpu ] && ! $pip -r requirements-cpu.lock 2>/tmp/setup-torch.$$; then
    if [ -z "${auto:-}" ]; then cat /tmp/setup-torch.$$ >&2; exit 1; fi
    echo "setup: no index has torch's CPU wheel for this Python; installing the CUDA build, which also runs on CPUs"
    TORCH=cuda
fi
rm -f /tmp/setup-torch.$$
echo "setup: installing the locked packages (torch for $TORCH)"
.venv/bin/uv pip install -q --python .venv/bin/python --no-deps --require-hashes -r requirements.lock
if [ "$TORCH" = cuda ]; then
    .venv/bin/uv pip install -q --python .venv/bin/python --no-deps --require-hashes -r requirements-cuda.lock
fi
# Compiling NeMo's and torch's sources takes half a minute. Done here, it delays no stage.
echo "setup: compiling the modules that stages import"
env -u PYTHONDONTWRITEBYTECODE .venv/bin/python - >/dev/null 2>&1 <<'PYTHON' || true
import importlib
for name in ("hydra", "pydantic", "dvc.cli", "nemo.collections.llm", "modelopt.torch.quantization",
             "modelopt.torch.export", "mlflow.store.tracking.sqlalchemy_store", "alembic.command",
             "mlflow.store.model_registry.sqlalchemy_store", "peft", "fastapi", "uvicorn", "openai",
             "onnxruntime_genai.models.builder", "matplotlib.pyplot", "pytest"):
    try:
        importlib.import_module(name)
    except Exception:
        continue
PYTHON
