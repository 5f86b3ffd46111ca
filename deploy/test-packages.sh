#!/bin/sh
# Installs the Debian packages that tests and benchmarks use, and fetches Cassandra, where that is missing and possible.
# Tests that need what could not be installed are skipped, and say so.
set -u
missing=""
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
# Servers that Debian keeps in sbin, which is not in everybody's path.
PATH=$PATH:/usr/sbin:/usr/local/sbin
need strace strace
need make make
need redis-server redis-server
need haproxy haproxy
need faketime faketime
need openssl openssl
need mvn maven
# Cassandra 5.0 runs on Java 17, not on whatever else may be here.
if ! ls /usr/lib/jvm/java-17-*/bin/java >/dev/null 2>&1 && ! java -version 2>&1 | grep -q ' version "17\.'; then
  missing="$missing openjdk-17-jre-headless"
fi

# Tests start servers of their own: a package's service must not run beside them, nor come back at the next boot.
# Services that were installed before this script came are somebody else's and stay as they are.
leave_no_services() {
  command -v systemctl >/dev/null 2>&1 && [ -d /run/systemd/system ] || return 0
  for service in redis-server haproxy; do
    case "$missing" in *" $service"*) systemctl disable --quiet --now "$service" 2>/dev/null ;; esac
  done
}

install() {
  # Debian starts a service as it installs it, unless this file says no.
  policy=/usr/sbin/policy-rc.d
  ours=""
  if [ ! -e "$policy" ]; then
    ours=yes
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"
  fi
  # shellcheck disable=SC2086  # a list of words
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing >/dev/null
  done_with=$?
  [ -z "$ours" ] || rm -f "$policy"
  leave_no_services
  return "$done_with"
}

if [ -n "$missing" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 && install; then :; else
    echo "tidegate: not installed:$missing; the tests that need them are skipped (sudo apt-get install$missing)" >&2
  fi
fi
sh "$(dirname -- "$0")/cassandra/fetch.sh" || echo "tidegate: the tests that need Cassandra are skipped" >&2
exit 0
