#!/usr/bin/env bash
# Counts to N (default 5), one line a second. Try editing it while it runs:
# the running job keeps its own bytes, the next run takes the new ones.
set -euo pipefail
n="${1:-5}"
for ((i = 1; i <= n; i++)); do
  echo "$i of $n on $(uname -n)"
  ((i < n)) && sleep 1
done
echo "counted to $n" >&2
