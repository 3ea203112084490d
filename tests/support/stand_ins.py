"""Schedulers' tools that a test machine may lack: small scripts with the real ones' words and exit codes."""

from __future__ import annotations

from pathlib import Path

CRONTAB = """#!/bin/sh
# Debian's crontab of one user, kept in {state}/crontab
file="{state}/crontab"
none() {{ [ -e "$file" ] || {{ echo "no crontab for ann" >&2; exit 1; }}; }}
case "$1" in
-l) none; cat "$file" ;;
-r) none; rm "$file" ;;
-)
    cat > "$file.new"
    if [ -n "$(tail -c 1 "$file.new")" ]; then
        echo "new crontab file is missing newline before EOF, can't install." >&2; exit 1
    fi
    mv "$file.new" "$file" ;;
*) echo "crontab: usage error" >&2; exit 1 ;;
esac
"""

SYSTEMCTL = """#!/bin/sh
# the manager of one user; what is enabled and what is active are files in {state}
echo "$@" >> "{state}/calls"
[ "$1" = --user ] && shift
verb=$1
for unit; do :; done
case "$verb" in
daemon-reload) ;;
enable)
    if ! [ -e "{units}/$unit" ]; then
        echo "Failed to enable unit: Unit file $unit does not exist." >&2; exit 1
    fi
    touch "{state}/$unit.enabled" ;;
restart) touch "{state}/$unit.active" ;;
disable) rm -f "{state}/$unit.enabled" "{state}/$unit.active" ;;
is-enabled) [ -e "{state}/$unit.enabled" ] || exit 1 ;;
is-active) [ -e "{state}/$unit.active" ] || exit 3 ;;
*) echo "Unknown command verb '$verb'." >&2; exit 1 ;;
esac
"""

LAUNCHCTL = """#!/bin/sh
# what is loaded is a file in {state}; a line in {state}/busy makes a bootstrap fail, as the slow end of an agent does
echo "$@" >> "{state}/calls"
label=${{2##*/}}
case "$1" in
print) [ -e "{state}/$label" ] || {{ echo "Could not find service \\"$label\\" in domain" >&2; exit 113; }} ;;
enable) ;;
bootstrap)
    label=$(basename "$3" .plist)
    if [ -s "{state}/busy" ]; then
        sed -i.bak 1d "{state}/busy"; echo "Bootstrap failed: 5: Input/output error" >&2; exit 5
    fi
    touch "{state}/$label" ;;
bootout)
    [ -e "{state}/$label" ] || {{ echo "Boot-out failed: 3: No such process" >&2; exit 3; }}
    rm "{state}/$label" ;;
*) echo "Unrecognized subcommand: $1" >&2; exit 64 ;;
esac
"""


def write_tool(folder: Path, name: str, script: str) -> None:
    """An executable `name` in `folder`."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(script)
    file.chmod(0o755)
