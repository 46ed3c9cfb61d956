#!/bin/sh
# The released binaries know nothing of failpoints; those for the tests do. no_failpoints_test.sh BIN_DIR FAULTS_BIN_DIR
set -eu
for name in rlhf-coordinator rlhf-rollout-worker rlhf-reward-server rlhf-learner; do
  if grep -q RLHF_FAILPOINTS_DIR "$1/$name"; then
    echo "$1/$name: expected no failpoints, found some: is it linked with failpoint.cc?"
    exit 1
  fi
  grep -q RLHF_FAILPOINTS_DIR "$2/$name" || { echo "$2/$name: expected failpoints, found none"; exit 1; }
done
