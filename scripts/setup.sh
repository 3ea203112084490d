#!/bin/sh
# Make .venv and install draftloop with the MLX build that this machine can run; knows nothing of models.
#
#   sh scripts/setup.sh        (make setup)
#   PYTHON=/path/to/python                take this interpreter instead of searching for one (when .venv is made)
#   MLX_BUILD=metal|cpu|cuda12|cuda13     take this build instead of asking the machine
#
# A stamp in .venv says what it was made of; while it still holds, nothing is done. POSIX sh: dash, and macOS's bash 3.2.
set -eu

cd "$(dirname "$0")/.."
VENV=.venv
STAMP=$VENV/draftloop.stamp
UNFINISHED=$VENV/draftloop.unfinished
OLDEST='3.11'

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

# 1. Which MLX build: what the machine can run, or a refusal in one line.

mlx_build() {
    case "$(uname -s)" in
        Darwin) mac_build ;;
        Linux) linux_build ;;
        *) die "$(uname -s) is not supported: MLX runs on Macs with Apple silicon and on Linux (on Windows, use WSL 2)" ;;
    esac
}

mac_build() {
    if [ "$(uname -m)" != arm64 ]; then
        if [ "$(sysctl -n hw.optional.arm64 2>/dev/null || true)" = 1 ]; then
            die "this terminal runs under Rosetta, where MLX does not work: open a native one (uname -m must say arm64)"
        fi
        die "Intel Macs are not supported: MLX needs Apple silicon (M1 or later)"
    fi
    echo metal
}

linux_build() {
    cuda=$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA[A-Za-z ]*Version *: *\([0-9][0-9]*\).*/\1/p' | head -n 1) || cuda=
    if [ "${cuda:-0}" -ge 13 ]; then
        echo cuda13
    elif [ "${cuda:-0}" -ge 12 ]; then
        echo cuda12
    else
        echo cpu
    fi
}

# 2. Which Python.

is_usable() { # INTERPRETER: runs, is not too old, and is native where MLX asks for it
    "$1" - "$OLDEST" >/dev/null 2>&1 <<'EOF'
import platform, sys
oldest = tuple(int(part) for part in sys.argv[1].split("."))
emulated = sys.platform == "darwin" and platform.machine() != "arm64"
sys.exit(sys.version_info[:2] < oldest or sys.maxsize < 2**32 or emulated)
EOF
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        is_usable "$PYTHON" || die "PYTHON=$PYTHON is not a 64-bit Python $OLDEST or later that runs here"
        command -v "$PYTHON"
        return
    fi
    for name in python3.13 python3.12 python3.11 python3 python; do
        if command -v "$name" >/dev/null 2>&1 && is_usable "$name"; then
            command -v "$name"
            return
        fi
    done
}

# 3. The environment.

has_uv() { command -v uv >/dev/null 2>&1; }

is_whole() { # no installation was cut off, its Python starts, and something can install into it
    [ ! -e "$UNFINISHED" ] && is_usable "$VENV/bin/python" &&
        { has_uv || "$VENV/bin/python" -m pip --version >/dev/null 2>&1; }
}

make_venv() {
    python=$(find_python)
    if [ -z "$python" ] && ! has_uv; then
        die "no Python $OLDEST or later found; install one (brew install python@3.13, apt-get install python3 python3-venv," \
            "dnf install python3.13, or python.org) or uv, or name one: make setup PYTHON=/path/to/python3"
    fi
    rm -rf "$VENV"
    if has_uv; then
        say "making $VENV with uv"
        uv venv --quiet --python "${python:->=$OLDEST}" "$VENV" && return
        [ -n "$python" ] || die "no Python $OLDEST or later found, and uv could not fetch one (see above)"
        say 'uv could not make it; trying without'
        rm -rf "$VENV"
    fi
    say "making $VENV with $python"
    "$python" -m venv "$VENV" >&2 || die "$python cannot make a virtual environment (see above);" \
        'on Debian and Ubuntu: apt-get install python3-venv; or install uv'
}

install() { # EXTRAS
    if has_uv; then
        uv pip install --python "$VENV/bin/python" --editable ".[$1]" && return
        say 'uv could not install it; trying with pip'
        "$VENV/bin/python" -m ensurepip >/dev/null || return
    fi
    PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 "$VENV/bin/python" -m pip install --editable ".[$1]"
}

warn_of_slow_blas() { # MLX's CPU wheel brings a reference BLAS; a fast one is loaded over it where there is one
    "$VENV/bin/python" - >&2 <<'EOF' || true
from draftloop import blas
if blas.is_needed() and blas.preload() is None:
    print(f"setup: no OpenBLAS found: all works, but many times slower; {blas.REMEDY};",
          "without root: conda install openblas, and add $CONDA_PREFIX/lib to LD_LIBRARY_PATH")
EOF
}

# 4. Do only what is not done yet.

trap 'exit 130' INT
trap 'exit 143' TERM
unset PYTHONHOME PYTHONPATH VIRTUAL_ENV || true
# Where .venv is activated, its own Python must not be the one that a new .venv is made from.
PATH=$(printf %s "$PATH" | tr : '\n' | grep -vxF -e "$(pwd)/$VENV/bin" -e "$(pwd -P)/$VENV/bin" | paste -s -d : -)
build=${MLX_BUILD:-$(mlx_build)}
case $build in
    metal) extras=dev ;;
    cpu | cuda12 | cuda13) extras=$build,dev ;;
    *) die "MLX_BUILD=$build is unknown; one of metal, cpu, cuda12, cuda13" ;;
esac
wanted="$build $(cat pyproject.toml scripts/setup.sh | cksum) $(pwd)"

if [ "$(cat "$STAMP" 2>/dev/null || true)" != "$wanted" ] || ! is_usable "$VENV/bin/python"; then
    made_for=$(cut -d ' ' -f 1 "$STAMP" 2>/dev/null || true)
    made_in=$(cut -d ' ' -f 4- "$STAMP" 2>/dev/null || true)
    # Two MLX builds in one environment overwrite each other's files, and a moved environment points to its old place.
    if ! is_whole || [ "${made_for:-$build}" != "$build" ] || [ "${made_in:-$(pwd)}" != "$(pwd)" ]; then
        make_venv
    fi
    rm -f "$STAMP"
    : >"$UNFINISHED"
    say "installing draftloop[$extras]"
    if ! install "$extras" >&2; then
        rm -f "$UNFINISHED" # it failed in order; only one that was cut off leaves packages half copied
        die 'installing failed (see above); it needs a network, and macOS 14 or a Linux with glibc 2.35 (Debian 12, Ubuntu 22.04)'
    fi
    "$VENV/bin/python" -c 'import mlx.core, draftloop' ||
        die "MLX's $build build does not load here (see above); to take another: export MLX_BUILD=cpu, and again"
    printf '%s\n' "$wanted" >"$STAMP"
    rm -f "$UNFINISHED"
    say "ready: $("$VENV/bin/python" --version), MLX for $build"
fi
if [ "$build" = cpu ]; then
    warn_of_slow_blas
fi
