#!/usr/bin/env bash
# Proves docker-compose.yml: three nodes become healthy, a file read on the third comes from the other two, they find each
# other again after `down` and `up` in a network with other addresses, and `down` leaves no mount. Needs root, docker-compose, and docker with an engine or dockerd, of which it then starts one of its
# own in a network namespace of its own. `tests/compose.sh [static binary]` builds the image from that binary.
set -euo pipefail
cd "$(dirname "$0")/.."
skip() { echo "compose: skipped: $*"; [ -z "${STARLING_REQUIRE_ALL:-}" ]; exit; }
[ "$(id -u)" = 0 ] || skip "needs root"
command -v docker >/dev/null || skip "docker is not installed"
compose=()
if docker compose version >/dev/null 2>&1; then compose=(docker compose)
elif command -v docker-compose >/dev/null; then compose=(docker-compose)
else skip "neither docker-compose nor the compose plugin is installed"; fi

work=$(mktemp -d /tmp/starling-compose-XXXXXX)
name=$(basename "$work")
engine=
finish() {
  set +e
  "${compose[@]}" -p "$name" down -v --timeout 20 >/dev/null 2>&1
  docker network rm "$name-taken" >/dev/null 2>&1
  if [ -n "$engine" ]; then
    kill "$engine"; wait "$engine" 2>/dev/null
    ip netns del "$name"
  fi
  # Mounts of the engine, and of the shared folder below.
  grep -F "$work" /proc/self/mounts | cut -d' ' -f2 | sort -r | while read -r at; do umount -l "$at"; done
  rm -rf "$work"
}
trap finish EXIT

if ! docker info >/dev/null 2>&1; then
  command -v dockerd >/dev/null || skip "no docker engine answers, and dockerd is not installed"
  ip netns add "$name"
  ip -n "$name" link set lo up
  export DOCKER_HOST=unix://$work/docker.sock
  # nsenter, not `ip netns exec`, which would hide /sys/fs/cgroup.
  nsenter --net="/run/netns/$name" dockerd --host "$DOCKER_HOST" --data-root "$work/data" --exec-root "$work/exec" \
    --pidfile "$work/pid" >"$work/dockerd.log" 2>&1 &
  engine=$!
  for _ in $(seq 100); do docker info >/dev/null 2>&1 && break; sleep 0.2; done
  docker info >/dev/null 2>&1 || { tail -20 "$work/dockerd.log"; skip "dockerd does not start"; }
fi

export STARLING_IMAGE=starling:$name STARLING_MOUNTS=$work/mounts STARLING_CONTENT=$work/content
STARLING_BINARY=${1:-${STARLING_BINARY:-}} deploy/build-image.sh "$STARLING_IMAGE" >"$work/build.log" 2>&1 ||
  { tail -20 "$work/build.log"; exit 1; }
mkdir -p "$STARLING_MOUNTS" "$STARLING_CONTENT/sub"
# Whatever is mounted below must be seen outside of the containers.
mount --bind "$STARLING_MOUNTS" "$STARLING_MOUNTS"
mount --make-rshared "$STARLING_MOUNTS"
head -c 24000000 /dev/urandom >"$STARLING_CONTENT/large"
cp -r docs "$STARLING_CONTENT/sub/"

say() { echo "compose: $* (${SECONDS}s)"; }
dump() { "${compose[@]}" -p "$name" ps; "${compose[@]}" -p "$name" logs --tail 25; }
"${compose[@]}" -p "$name" up -d >"$work/up.log" 2>&1 || { cat "$work/up.log"; dump; exit 1; }
container() { "${compose[@]}" -p "$name" ps -q "$1"; }
healthy() {
  for node in node1 node2 node3; do
    for _ in $(seq 120); do
      state=$(docker inspect -f '{{.State.Health.Status}}' "$(container $node)")
      [ "$state" = healthy ] && break
      sleep 0.5
    done
    [ "$state" = healthy ] || { say "$node is $state"; dump; exit 1; }
  done
  say "three nodes are healthy"
}
healthy

# A figure of a node by name and label, in whole bytes.
figure() {
  docker exec "$(container "$1")" /starling status --metrics |
    awk -v name="$2" '$1 == name { found = $2 } END { printf "%d\n", found }'
}
obtained() { figure "$1" "starling_obtained_bytes_total{source=\"$2\"}"; }
uploaded() { echo $(($(figure node1 starling_uploaded_bytes_total) + $(figure node2 starling_uploaded_bytes_total))); }
same() { diff -r --no-dereference "$STARLING_CONTENT" "$STARLING_MOUNTS/$1/demo" || { dump; exit 1; }; }
same node1
same node2
before=$(obtained node3 strata) sent=$(uploaded)
"${compose[@]}" -p "$name" stop stratum >/dev/null 2>&1
same node3
peers=$(obtained node3 peers)
say "node3 read $(stat -c %s "$STARLING_CONTENT/large") bytes and more: $peers from neighbours, $(obtained node3 strata) from strata, of these $before before"
[ "$(obtained node3 strata)" = "$before" ] && [ "$peers" -gt 0 ] && [ "$(uploaded)" -gt "$sent" ] || { dump; exit 1; }

# What is published again is seen by all, after a start that finds everything as it was left.
"${compose[@]}" -p "$name" restart -t 20 node3 >/dev/null 2>&1
echo new >"$STARLING_CONTENT/sub/new"
"${compose[@]}" -p "$name" up -d >"$work/up.log" 2>&1 || { cat "$work/up.log"; dump; exit 1; }
for node in node1 node2 node3; do
  for _ in $(seq 120); do [ -e "$STARLING_MOUNTS/$node/demo/sub/new" ] && break; sleep 0.5; done
  same $node
done
say "the next revision is seen by all, and node3 came back"

# The volumes stay, the network goes; another takes its addresses, so that the next one has none that was anybody's.
subnet() {
  local network
  network=$(docker inspect -f '{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}' "$(container node1)")
  docker network inspect -f '{{(index .IPAM.Config 0).Subnet}}' "$network"
}
before=$(subnet)
"${compose[@]}" -p "$name" down --timeout 20 >"$work/down.log" 2>&1 || { cat "$work/down.log"; exit 1; }
docker network create --subnet "$before" "$name-taken" >/dev/null
echo newer >"$STARLING_CONTENT/sub/newer"
"${compose[@]}" -p "$name" up -d >"$work/up.log" 2>&1 || { cat "$work/up.log"; dump; exit 1; }
say "after down and up the network is $(subnet) instead of $before"
[ "$(subnet)" != "$before" ] || exit 1
healthy
for node in authority node1 node2 node3; do
  up=
  # Two groups that do not know of each other find out by the name that they all have, within three minutes.
  for _ in $(seq 480); do
    up=$(figure $node 'starling_members{state="up"}' || true)
    [ "${up:-0}" -ge 4 ] && break
    sleep 0.5
  done
  [ "${up:-0}" -ge 4 ] || { say "$node sees $up members"; dump; exit 1; }
  say "$node sees $up members, itself included"
done
for node in node1 node2 node3; do
  for _ in $(seq 120); do [ -e "$STARLING_MOUNTS/$node/demo/sub/newer" ] && break; sleep 0.5; done
  same $node
done
say "the revision that was published meanwhile is seen by all"
# One that is announced now comes through the mesh, for nobody is alone: the strata would be asked later.
echo newest >"$STARLING_CONTENT/sub/newest"
"${compose[@]}" -p "$name" up -d >"$work/up.log" 2>&1 || { cat "$work/up.log"; dump; exit 1; }
for node in node1 node2 node3; do
  for _ in $(seq 120); do [ -e "$STARLING_MOUNTS/$node/demo/sub/newest" ] && break; sleep 0.5; done
  same $node
done
say "and the next one, too"

"${compose[@]}" -p "$name" down -v --timeout 20 >"$work/down.log" 2>&1 || { cat "$work/down.log"; exit 1; }
if grep -F "$STARLING_MOUNTS/" /proc/self/mounts; then say "these mounts were left"; exit 1; fi
say "down left no mount"
