#!/usr/bin/env bash
# Brings the programs that the tests run and that this machine lacks: apt packages,
# where the caller may install them. Elsewhere it says in one line what to run.
set -euo pipefail

# program:package. The real interpreters and tools are what the tests of the
# environment of jobs try to make load other code.
programs=(
  make:make gcc:gcc cc:gcc git:git tar:tar kill:procps script:bsdutils unshare:util-linux
  python3:python3 perl:perl ruby:ruby node:nodejs java:default-jre-headless
  rsync:rsync openssl:openssl redis-server:redis-server
)
missing() {
  local p
  for p in "${programs[@]}"; do
    command -v "${p%%:*}" >/dev/null || echo "${p##*:}"
  done
  [ -f /usr/include/stdio.h ] || echo libc6-dev
}

mapfile -t need < <(missing | sort -u)
[ "${#need[@]}" -gt 0 ] || exit 0
sudo=()
[ "$(id -u)" -eq 0 ] || sudo=(sudo -n)
if ! command -v apt-get >/dev/null || { [ "$(id -u)" -ne 0 ] && ! sudo -n true 2>/dev/null; }; then
  echo "the tests need packages that are not installed: sudo apt-get install --no-install-recommends ${need[*]}" >&2
  exit 1
fi
echo "installing what the tests need: ${need[*]}" >&2
"${sudo[@]}" apt-get update -qq
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
mapfile -t need < <(missing | sort -u)
[ "${#need[@]}" -eq 0 ] || { echo "still missing after the installation: ${need[*]}" >&2; exit 1; }
