#!/bin/sh
# Installs the Debian packages that tests and benchmarks use, where they are missing and that is possible.
# Tests that need one which could not be installed are skipped, and say so.
set -u
missing=""
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need strace strace
need make make
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y $missing >/dev/null && exit 0
fi
echo "tidegate: not installed:$missing; the tests that need them are skipped (sudo apt-get install$missing)" >&2
exit 0
