#!/usr/bin/env bash
# One training on several machines, by torchrun. Run it on each of them, with the same values:
#
#   NODES=2 HEAD=10.0.0.1:29500 RUN=night-1 scripts/multi_node.sh [arguments of fit]
#
# HEAD is an address of any one of them; RUN is a new name for a new training. The folder runs/ has to be shared, for
# a process that dies is started again and goes on from the last checkpoint there. PROCESSES: how many on each machine,
# one for each GPU when left out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${NODES:?how many machines}" "${HEAD:?host:port of one of them}" "${RUN:?a name for this training}"

# A machine that does not come within five minutes ends the others.
exec python -m torch.distributed.run \
  --nnodes="$NODES" --nproc-per-node="${PROCESSES:-gpu}" --max-restarts=3 \
  --rdzv-backend=c10d --rdzv-endpoint="$HEAD" --rdzv-id="$RUN" --rdzv-conf=join_timeout=300 \
  -m {{ cookiecutter.package_name }} fit --run_name "$RUN" --resume auto \
  --config configs/strategy/ddp.yaml --config configs/strategy/multi_node.yaml \
  --trainer.num_nodes "$NODES" --trainer.devices "${PROCESSES:-auto}" "$@"
