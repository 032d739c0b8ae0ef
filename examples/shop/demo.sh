#!/bin/bash
# Builds the three services of the shop and runs them. Called by `make demo`; takes the binary as its argument.
set -euo pipefail

binary=$(realpath "${1:?"the build-engine binary"}")
cd "$(dirname "$0")"
state=$(realpath -m ../../target/demo)
mkdir -p "$state"
export BUILD_ENGINE_ROOT=${BUILD_ENGINE_ROOT:-$state/store-$(id -un)}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

heading() { printf '\n== %s\n' "$*"; }

missing=()
for need in mmdebstrap:mmdebstrap newuidmap:uidmap pasta:passt; do
  command -v "${need%%:*}" > /dev/null || missing+=("${need##*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
  heading "Installing with apt: ${missing[*]}"
  as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo)
  "${as_root[@]}" apt-get -qq -o DPkg::Lock::Timeout=300 update
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends \
    "${missing[@]}" > /dev/null
fi

# One line for each step, as it ends: how long it took, or that it was done before. Reads `--progress=plain`.
steps() {
  awk '
    /^#[0-9]+ \[internal\]/ { next }
    /^#[0-9]+ (\[|exporting to)/ && !($1 in name) { name[$1] = substr($0, length($1) + 2); next }
    /^#[0-9]+ (DONE|CACHED)/ && ($1 in name) {
      printf "  %8s  %.100s\n", $2 == "CACHED" ? "as before" : $3, name[$1]; fflush()
    }'
}

# build SERVICE: the live view on a terminal, one line for each step elsewhere.
build() {
  local command=(build --build-context "debian=oci-layout://$state/debian:latest" --target "$1" -t "shop/$1" .)
  if [ -t 2 ]; then
    "$binary" "${command[@]}"
  elif ! "$binary" "${command[@]}" --progress=plain 2>&1 | tee "$log" | steps; then
    cat "$log"
    return 1
  fi
}

heading "A base image from Debian's packages, without a registry"
../make-base.sh "$state/debian"
echo "$state/debian"

heading "Building three services as $(id -un), without a daemon: examples/shop/Dockerfile"
began=$SECONDS
for service in catalog orders report; do
  echo "shop/$service"
  build "$service"
done
echo "took $((SECONDS - began)) s; the stages that they share were built once"

heading "Running them, each in a sandbox of its own: build-engine run shop/…"
for service in catalog orders report; do
  "$binary" run "shop/$service" | sed "s/^/  $(printf %-8s "$service") | /"
done

heading "The images"
"$binary" images ls

heading "Building shop/orders again: every step is found, none runs"
build orders
