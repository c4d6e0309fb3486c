#!/usr/bin/env bash
# Fuzzes every target of the tree for the time that is given ("3s"). What it finds
# becomes a file below testdata/fuzz, which every later run of the tests plays.
set -euo pipefail
cd "$(dirname "$0")/.."
each="${1:?time for each target, such as 3s}"
go="${GO:-go}"
cache="$("$go" env GOCACHE)/fuzz"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

for dir in $(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do
  # One instrumented binary for all targets of a package.
  "$go" test -c -fuzz=. -o "$work/fuzz.test" "$dir"
  for target in $(cd "$dir" && grep -h '^func Fuzz' ./*_test.go | sed -E 's/^func (Fuzz[A-Za-z0-9_]*).*/\1/'); do
    echo "fuzz $dir $target"
    if ! (cd "$dir" && "$work/fuzz.test" -test.run='^$' -test.fuzz="^$target\$" -test.fuzztime="$each" \
      -test.fuzzminimizetime=5x -test.fuzzcachedir="$cache/${dir#./}" -test.parallel=2 >"$work/log" 2>&1); then
      # Go may report the end of the time itself as a failure of the target
      # (go.dev/issue/75804, mended in Go 1.27). That line stands alone then: what a
      # target found has lines of its own between the two.
      if [ "$(sed -n '/^--- FAIL/,$p' "$work/log" | sed 1d)" != $'    context deadline exceeded\nFAIL' ]; then
        cat "$work/log"
        exit 1
      fi
      echo "fuzz $dir $target: the time ended while an input ran (go.dev/issue/75804)"
    fi
  done
done
