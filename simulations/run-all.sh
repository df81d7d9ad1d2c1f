#!/bin/sh
# Runs all published scenarios, or those that are named, and keeps their results: simulations/run-all.sh [NAME...]
# All take a few hours of two cores, of which edge-1m, grid-100k, in-order-10k and flash-crowd-10k take the most. The binary is ${STARLING:-starling}.
set -eu
cd "$(dirname "$0")"
[ $# -gt 0 ] || set -- $(cd scenarios && ls | sed -n 's/\.toml$//p')
for name; do
    # What nodes do not get is a result as well: the exit code is not looked at.
    "${STARLING:-starling}" simulate "scenarios/$name.toml" --results results || echo "$name: see above" >&2
done
