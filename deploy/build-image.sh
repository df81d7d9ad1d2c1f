#!/usr/bin/env bash
# Builds a static `starling` and an image with it.
#   deploy/build-image.sh [TAG]          the image's name, `starling:local` by default
#   STARLING_BINARY=FILE …               take this static binary instead of building one
set -euo pipefail
cd "$(dirname "$0")/.."
tag=${1:-starling:local}
host=$(rustc -vV | sed -n 's/^host: //p')
binary=${STARLING_BINARY:-}
if [ -z "$binary" ]; then
  # With --target, so that build scripts and procedural macros stay dynamic.
  RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target "$host"
  binary=${CARGO_TARGET_DIR:-target}/$host/release/starling
fi
if readelf -l "$binary" | grep -q 'Requesting program interpreter'; then
  echo "$binary is not static: it would not start in an empty image" >&2
  exit 1
fi
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
cp "$binary" "$context/starling"
strip --strip-debug "$context/starling"
# Needed for strata behind https only.
cp /etc/ssl/certs/ca-certificates.crt "$context/" 2>/dev/null || : > "$context/ca-certificates.crt"
docker build --tag "$tag" --file deploy/Dockerfile "$context"
