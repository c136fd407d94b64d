#!/usr/bin/env bash
# What a machine with one GPU is for, within 9 minutes: see docs/scaling.md and benchmarks/gpu_check.py.
#
#   scripts/gpu_check.sh [--wheels FOLDER] [options of python -m benchmarks.gpu_check]
#
# --wheels installs what the machine lacks from a folder of wheels, without a network, into a folder of its own that is
# deleted afterwards. PYTHON names the interpreter; default: .venv, else python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-}
if [[ -z $python ]]; then
  python=python3
  [[ -x .venv/bin/python ]] && python=.venv/bin/python
fi

options=()
wheels=
while (($#)); do
  case $1 in
    --wheels)
      wheels=${2:?--wheels needs a folder}
      shift
      ;;
    --wheels=*) wheels=${1#*=} ;;
    *) options+=("$1") ;;
  esac
  shift
done

if [[ -n $wheels ]]; then
  compgen -G "$wheels/*.whl" >/dev/null || {
    echo "error: --wheels $wheels: there are no wheels (*.whl) in this folder" >&2
    exit 2
  }
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --disable-pip-version-check --target "$site" \
    "$wheels"/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
"$python" -m benchmarks.gpu_check "${options[@]}"
