#!/bin/sh
# Make .venv and install draftloop, the MLX build that this machine can run, and a fast BLAS; knows nothing of models.
#
#   sh scripts/setup.sh        (make setup)
#   sh scripts/setup.sh dev    (make dev) with the tools that test, check and measure
#   sh scripts/setup.sh clients    (make clients) with these, and clients of the server that only tests need
#   sh scripts/setup.sh real       (make real) with these, and what makes the models that people use
#   PYTHON=/path/to/python3                take this interpreter instead of searching for one (when .venv is made)
#   MLX_BUILD=metal|cpu|cuda12|cuda13      take this build instead of asking the machine
#   DRAFTLOOP_NO_OPENBLAS=1                get no fast BLAS
#   BLAS_AGAIN=1                           try to get one, even where that failed within the last hour
#
# A stamp in .venv says what it was made of; while it still holds, nothing is done. POSIX sh: dash, and macOS's bash 3.2.
set -eu

cd "$(dirname "$0")/.."
VENV=.venv
STAMP=$VENV/draftloop.stamp
UNFINISHED=$VENV/draftloop.unfinished
LOG=$VENV/draftloop-setup.log
BLAS=$VENV/lib/draftloop-blas # where draftloop/runtime/blas.py looks
BLAS_LOG=$VENV/draftloop-blas.log
BLAS_TRIED=$VENV/draftloop.no-blas
OLDEST='3.11'

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

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
        if has "$name" && is_usable "$name"; then
            command -v "$name"
            return
        fi
    done
}

# 3. The environment.

is_whole() { # no installation was cut off, its Python starts, and something can install into it
    [ ! -e "$UNFINISHED" ] && is_usable "$VENV/bin/python" &&
        { has uv || "$VENV/bin/python" -m pip --version >/dev/null 2>&1; }
}

make_venv() {
    python=$(find_python)
    if [ -z "$python" ] && ! has uv; then
        die "no Python $OLDEST or later found; install one (brew install python@3.13, apt-get install python3 python3-venv," \
            "dnf install python3.13, or python.org) or uv, or name one: make setup PYTHON=/path/to/python3"
    fi
    rm -rf "$VENV"
    if has uv; then
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

quietly() { # COMMAND...: what it says is shown when it fails
    "$@" >"$LOG" 2>&1 || { cat "$LOG" >&2; return 1; }
}

install() { # WHAT
    if has uv; then
        quietly uv pip install --python "$VENV/bin/python" --editable "$1" && return
        say 'uv could not install it; trying with pip'
        quietly "$VENV/bin/python" -m ensurepip || return
    fi
    quietly env PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 "$VENV/bin/python" -m pip install --editable "$1"
}

# 4. A fast BLAS under MLX's CPU build, which brings a reference one: draftloop/runtime/blas.py loads what it finds over it.
#    Nothing of this makes set-up fail, and what is unpacked comes into place whole, by a rename.

PACKAGE=libopenblas0-pthread
WHEEL=scipy-openblas32==0.3.23.293.2 # later ones prefix every name; docs/decisions/2026-11-28-fast-blas.md
APT='-q -y -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 -o DPkg::Lock::Timeout=30'
PATIENCE=120 # seconds for one download
export DEBIAN_FRONTEND=noninteractive

finds_blas() {
    "$VENV/bin/python" -c 'import sys; from draftloop.runtime import blas; sys.exit(blas.is_needed() and not blas.preload())'
}

get_blas() { # in the first way that works
    why='no fast BLAS found'
    : >"$BLAS_LOG"
    if { [ "$(id -u)" = 0 ] && has apt-get && attempt "installing $PACKAGE with apt-get" install_package; } ||
        { has apt-get && has dpkg-deb && attempt "unpacking $PACKAGE into $VENV" unpack_package; } ||
        attempt "installing the wheel ${WHEEL%==*} into $VENV" install_wheel; then
        rm -rf "$BLAS.new" "$BLAS_TRIED"
    else
        rm -rf "$BLAS.new" "$BLAS"
        : >"$BLAS_TRIED"
    fi
}

attempt() { # WHAT COMMAND
    say "$why: $1"
    why='that failed'
    rm -rf "$BLAS.new" && mkdir -p "$BLAS.new" && "$2" >>"$BLAS_LOG" 2>&1 && finds_blas
}

within() { timeout --foreground "$PATIENCE" "$@" </dev/null; } # in the foreground, where Ctrl-C reaches it

# shellcheck disable=SC2086 # the options are words
install_package() {
    fetch_package || { within apt-get $APT update && fetch_package; } || return
    # Here without a limit: what is being written to the system is not cut off.
    apt-get $APT --no-install-recommends --no-remove --no-download install "$PACKAGE" </dev/null
}

# shellcheck disable=SC2086
fetch_package() { within apt-get $APT --no-install-recommends --no-remove --download-only install "$PACKAGE"; }

# shellcheck disable=SC2086
unpack_package() ( # the distribution's own, and what it needs of gfortran; some machines' has no libquadmath
    cd "$BLAS.new" || exit
    within apt-get $APT download "$PACKAGE" libgfortran5 || exit
    within apt-get $APT download libquadmath0 || true
    for file in *.deb; do
        dpkg-deb -x "$file" unpacked || exit
    done
    find unpacked \( -name libopenblas.so.0 -o -name libgfortran.so.5 -o -name libquadmath.so.0 \) -exec cp -L {} . \;
    rm -rf unpacked ./*.deb
    cd - && put_in_place
)

install_wheel() { # not among the packages of .venv, where nothing else should find it
    wheel=$BLAS.new/wheel
    if has uv; then
        within env UV_HTTP_TIMEOUT=20 uv pip install --python "$VENV/bin/python" --target "$wheel" \
            --no-deps --only-binary :all: "$WHEEL" || return
    else
        within env PIP_USER=0 "$VENV/bin/python" -m pip install --timeout 20 --retries 1 --disable-pip-version-check \
            --target "$wheel" --no-deps --only-binary :all: "$WHEEL" || return
    fi
    mv "$wheel"/scipy_openblas32/lib/*.so* "$BLAS.new" &&
        mv "$BLAS.new/libopenblas_python.so" "$BLAS.new/libopenblas.so.0" && rm -rf "$wheel" && put_in_place
}

put_in_place() { [ -s "$BLAS.new/libopenblas.so.0" ] && rm -rf "$BLAS" && mv "$BLAS.new" "$BLAS"; }

tried_lately() { [ -z "${BLAS_AGAIN:-}" ] && [ -n "$(find "$BLAS_TRIED" -mmin -60 2>/dev/null)" ]; }

warn_of_slow_blas() {
    say "no fast BLAS: all works, but many times slower;" \
        "$("$VENV/bin/python" -c 'from draftloop.runtime import blas; print(blas.REMEDY)');" \
        "$BLAS_LOG says what was tried, and 'make setup' tries again"
}

# 5. Do only what is not done yet.

trap 'exit 130' INT
trap 'exit 143' TERM
unset PYTHONHOME PYTHONPATH VIRTUAL_ENV || true
# Where .venv is activated, its own Python must not be the one that a new .venv is made from.
PATH=$(printf %s "$PATH" | tr : '\n' | grep -vxF -e "$(pwd)/$VENV/bin" -e "$(pwd -P)/$VENV/bin" | paste -s -d : -)
case ${1:-} in
    '') tools= ;;
    dev | clients | real) tools=$1 ;;
    *) die "'$1' is unknown; nothing, or dev for the tools that test draftloop, or clients or real for these and what 'make $1' takes" ;;
esac
build=${MLX_BUILD:-$(mlx_build)}
case $build in
    metal | cpu | cuda12 | cuda13) ;;
    *) die "MLX_BUILD=$build is unknown; one of metal, cpu, cuda12, cuda13" ;;
esac
# The stamp: MLX's build and, after a comma, the tools; what they were installed by; where.
made_for=$(cut -d ' ' -f 1 "$STAMP" 2>/dev/null || true)
made_in=$(cut -d ' ' -f 4- "$STAMP" 2>/dev/null || true)
wish=",${tools:+dev,$tools,}$made_for," # who has some keeps them, and up to date
tools=
for one in dev clients real; do
    case $wish in *,$one,*) tools=${tools:+$tools,}$one ;; esac
done
wanted="$build${tools:+,$tools} $(cat pyproject.toml scripts/setup.sh | cksum) $(pwd)"
renewed=

if [ "$(cat "$STAMP" 2>/dev/null || true)" != "$wanted" ] || ! is_usable "$VENV/bin/python"; then
    made_build=${made_for%%,*}
    # Two MLX builds in one environment overwrite each other's files, and a moved environment points to its old place.
    if ! is_whole || [ "${made_build:-$build}" != "$build" ] || [ "${made_in:-$(pwd)}" != "$(pwd)" ]; then
        make_venv
    fi
    rm -f "$STAMP"
    : >"$UNFINISHED"
    extras=$(printf %s "$build,$tools" | sed -e 's/^metal,*//' -e 's/,$//')
    say "installing draftloop${extras:+[$extras]}, which takes a minute or two the first time"
    if ! install ".${extras:+[$extras]}"; then
        rm -f "$UNFINISHED" # it failed in order; only one that was cut off leaves packages half copied
        die 'installing failed (see above); it needs a network, and macOS 14 or a Linux with glibc 2.35 (Debian 12, Ubuntu 22.04)'
    fi
    "$VENV/bin/python" -c 'import mlx.core, draftloop' ||
        die "MLX's $build build does not load here (see above); to take another: export MLX_BUILD=cpu, and again"
    printf '%s\n' "$wanted" >"$STAMP"
    rm -f "$UNFINISHED"
    renewed=yes
fi
if [ "$build" = cpu ] && [ -z "${DRAFTLOOP_NO_OPENBLAS:-}" ] && ! finds_blas; then
    if [ -n "$renewed" ] || ! tried_lately; then
        get_blas
    fi
    if [ -e "$BLAS_TRIED" ]; then
        warn_of_slow_blas
    fi
fi
if [ -n "$renewed" ]; then
    say "ready: $("$VENV/bin/python" --version), MLX for $build"
fi
