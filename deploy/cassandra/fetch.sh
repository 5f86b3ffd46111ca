#!/bin/sh
# Fetches Cassandra's jars (67 MB) into .cache/cassandra/lib, once. Exits 1 with a message where that is impossible.
set -u
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cache=$here/../../.cache/cassandra
wanted=$(cksum <"$here/pom.xml")
[ -f "$cache/complete" ] && [ "$(cat "$cache/complete")" = "$wanted" ] && exit 0
command -v mvn >/dev/null 2>&1 || {
  echo "tidegate: Cassandra is not fetched, because Maven (mvn) is missing: install the package maven" >&2; exit 1; }
mkdir -p "$cache" || exit 1
# Into a folder of its own first: two runs at once do not disturb each other, and half a folder is never used.
new=$(mktemp -d "$cache/new.XXXXXX") || exit 1
trap 'rm -rf "$new"' EXIT
mvn -q -B -f "$here/pom.xml" dependency:copy-dependencies -DincludeScope=runtime "-DoutputDirectory=$new" \
  >"$cache/fetch.log" 2>&1 || {
  echo "tidegate: Cassandra could not be fetched by Maven; its output is in $cache/fetch.log" >&2; exit 1; }
rm -rf "$cache/lib" && mv -T "$new" "$cache/lib" && printf '%s\n' "$wanted" >"$cache/complete"
