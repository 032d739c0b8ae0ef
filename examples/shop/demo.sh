#!/bin/bash
# Builds the three services of the shop and runs them. Called by `make demo`; takes the binary as its argument.
set -euo pipefail

binary=$(realpath "${1:?"the build-engine binary"}")
cd "$(dirname "$0")"
state=$(realpath -m ../../target/demo)
mkdir -p "$state"
export BUILD_ENGINE_ROOT=${BUILD_ENGINE_ROOT:-$state/store-$(id -un)}

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
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}"
fi

heading "A base image from Debian's packages (no registry)"
../make-base.sh "$state/debian"

for service in catalog orders report; do
  heading "Building shop/$service"
  "$binary" build --build-context "debian=oci-layout://$state/debian:latest" --target "$service" -t "shop/$service" .
done

for service in catalog orders report; do
  heading "Running shop/$service"
  "$binary" run "shop/$service"
done

heading "Building shop/orders again: nothing is left to do"
time "$binary" build --build-context "debian=oci-layout://$state/debian:latest" --target orders -t shop/orders .
