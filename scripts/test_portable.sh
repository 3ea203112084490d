#!/bin/sh
# Run the fast tests on every machine that this one can pass for, one after the other, and print how each ended.
#
#   sh scripts/test_portable.sh [PYTEST ARGUMENTS]        (make test-portable ARGS=…)
#
#   one core       the processes of `make test` bound to one of them (taskset: Linux)
#   busy           beside a busy process for each core
#   NAME           OpenBLAS with the kernels of an older processor, which round otherwise: three that this one executes
#   no OpenBLAS    MLX with the reference BLAS that it brings
#
# What a machine cannot pass for is told as left out. The exit code is 0 when all others passed. POSIX sh.
set -u

cd "$(dirname "$0")/.." || exit
PY=.venv/bin/python
LOGS=$(mktemp -d "${TMPDIR:-/tmp}/test-portable.XXXXXX") || exit
BURNERS=
failed=0

row() { printf '%-14s %-13s %8s  %s\n' "$@" >>"$LOGS/table"; }

run() { # NAME COMMAND...: the fast tests under it
    name=$1
    shift
    log=$LOGS/$(printf %s "$name" | tr ' ' -).log
    printf '== %s: %s\n' "$name" "$log" >&2
    kernels=$("$@" "$PY" -c "$KERNELS") || kernels='?'
    began=$(date +%s)
    if "$@" make test ARGS="$ARGUMENTS" >"$log" 2>&1; then
        ended=passed
    else
        ended=FAILED
        failed=1
    fi
    row "$name" "$kernels" "$(($(date +%s) - began)) s" "$ended: $(grep -E ' in [0-9.]+s' "$log" | tail -n 1 | tr -d =)"
}

left_out() { row "$1" - - "left out: $2"; }

KERNELS='
import ctypes
from draftloop.runtime import blas
if blas.preload() is None:
    print("none")
else:
    corename = ctypes.CDLL(None).openblas_get_corename
    corename.restype = ctypes.c_char_p
    print(corename().decode())
'

one_core() {
    first=$(sed -n 's/^Cpus_allowed_list:[^0-9]*\([0-9]*\).*/\1/p' /proc/self/status 2>/dev/null)
    if [ -n "$first" ] && command -v taskset >/dev/null; then
        run 'one core' taskset -c "$first"
    else
        left_out 'one core' 'no taskset'
    fi
}

busy() {
    for _ in $(seq "$("$PY" -c 'import os; print(os.cpu_count())')"); do
        (while :; do :; done) &
        BURNERS="$BURNERS $!"
    done
    run busy env
    cool
}

cool() {
    for burner in $BURNERS; do
        kill "$burner" 2>/dev/null
        wait "$burner" 2>/dev/null
    done
    BURNERS=
}

has() { grep -qw "$1" /proc/cpuinfo 2>/dev/null; }

older_kinds() { # that this processor executes: another would end in SIGILL
    case $(uname -m) in
        x86_64)
            ! has sse4_2 || echo Nehalem
            ! has avx || echo Sandybridge
            { has avx2 && has fma; } && echo Haswell
            ;;
        aarch64) echo 'ARMV8 CORTEXA53 CORTEXA57' ;;
    esac
}

kinds() {
    if [ "$("$PY" -c "$KERNELS")" = none ]; then
        left_out kernels 'MLX runs on no OpenBLAS here'
        left_out 'no OpenBLAS' 'as it is'
        return
    fi
    for kind in $(older_kinds); do
        run "$kind" env OPENBLAS_CORETYPE="$kind"
    done
    run 'no OpenBLAS' env DRAFTLOOP_NO_OPENBLAS=1
}

ARGUMENTS=$*
trap cool EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
make dev || exit
row set-up kernels time result
one_core
busy
kinds
cat "$LOGS/table"
exit "$failed"
