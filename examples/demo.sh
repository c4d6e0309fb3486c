#!/usr/bin/env bash
# What `make demo` does after the build: a cluster with mutual TLS on this
# machine, one streamed job, and the cluster left up to play with.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/bin:$PATH"
drover dev --detach
echo
echo '$ drover run count.sh 3'
drover run count.sh 3
cat <<TRY

That job went through the scheduler, mutual TLS, a worker and the bash runner
plugin. The cluster is still up. First put drover on your PATH:

  export PATH="$PWD/bin:\$PATH"

Then try:

  drover run hello.py --name World
  drover exec -- uname -a
  drover workers
  drover jobs
  id=\$(drover run -d count.sh 60); drover logs -f \$id     # Ctrl-C leaves it running
  drover stop \$id

Edit examples/scripts/count.sh while it runs, and run it again.
"drover dev stop" ends the cluster.
TRY
