#!/bin/sh
# Runs a Windows program under Wine without a display, an installation or a question:
#   tests/toolchains/wine.sh PROGRAM.exe [WORD ...]
# Its Windows lives in $WINEPREFIX (~/.cache/bert4rec-wine), which the first call makes: about ten
# seconds, during which other calls wait.
set -eu
export WINEPREFIX="${WINEPREFIX:-$HOME/.cache/bert4rec-wine}"
export WINEARCH=win64 WINEDEBUG="${WINEDEBUG:--all}"
export WINEDLLOVERRIDES="mscoree,mshtml="  # else it would offer to download Mono and Gecko
unset DISPLAY WAYLAND_DISPLAY

wine=
for candidate in /usr/lib/wine/wine64 wine64 wine; do
  command -v "$candidate" >/dev/null 2>&1 && wine=$candidate && break
done
[ -n "$wine" ] || { echo "wine.sh: please install: wine64 (Debian, Ubuntu), or wine" >&2; exit 127; }

if [ ! -e "$WINEPREFIX/ready" ]; then
  mkdir -p "$WINEPREFIX"
  (
    flock 9
    [ -e "$WINEPREFIX/ready" ] && exit
    "$wine" wineboot --init >"$WINEPREFIX/wineboot.log" 2>&1 </dev/null
    # The registry is on the disk when the server of this prefix has ended.
    $(command -v wineserver || echo /usr/lib/wine/wineserver) -w
    touch "$WINEPREFIX/ready"
  ) 9>"$WINEPREFIX.lock"
fi
exec "$wine" "$@"
