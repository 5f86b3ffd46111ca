#!/bin/sh
# Makes the virtual environment, or says in one line what is missing.
set -eu
python=$1
venv=$2
command -v "$python" >/dev/null 2>&1 || { echo "tidegate: $python not found; install Python 3.11 or newer" >&2; exit 1; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "tidegate: $("$python" --version) is too old; Python 3.11 or newer is needed (make PYTHON=python3.12 ...)" >&2; exit 1; }
if ! "$python" -c 'import ensurepip' 2>/dev/null; then
  # Debian keeps ensurepip in a package of its own.
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    apt-get update -qq && apt-get install -qq -y python3-venv >/dev/null
  else
    echo "tidegate: this Python has no ensurepip; run: sudo apt-get install python3-venv" >&2; exit 1
  fi
fi
echo "making $venv"
"$python" -m venv "$venv"
