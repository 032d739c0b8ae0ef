#!/bin/bash
# Makes a base image from Debian's packages: the smallest installation that has apt-get, as an OCI layout.
#
#   make-base.sh DIR [PACKAGE...]    write the layout to DIR, tag `latest`, with PACKAGEs installed too
#
# Needs mmdebstrap, and root or subordinate ids. The package sources are the machine's own: its Debian mirrors, its
# proxy, and its certificates, so that `apt-get install` works in a RUN step wherever it works outside.
set -euo pipefail

dir=${1:?"the folder of the layout"}
shift
if [ -e "$dir/index.json" ]; then exit 0; fi

say() { echo "make-base: $*" >&2; }
. /etc/os-release
suite=${VERSION_CODENAME:-stable}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# site, codename and component of each Debian source that apt knows here
sources() {
  apt-get indextargets --format '$(CREATED_BY) $(ORIGIN) $(SITE) $(RELEASE) main' 2> /dev/null |
    awk '$1 == "Packages" && $2 == "Debian" { print "deb", $3, $4, $5 }' | sort -u
}
sources > "$work/sources.list"
if [ ! -s "$work/sources.list" ]; then
  say "refreshing apt's lists, to learn the machine's mirrors"
  apt-get -qq -o DPkg::Lock::Timeout=300 update
  sources > "$work/sources.list"
fi
[ -s "$work/sources.list" ] || { say "apt knows no Debian mirror"; exit 3; }

# what apt needs to reach the mirrors: proxies, and settings such as those for old snapshots
apt-config dump | grep -E '^Acquire::(https?::(.*::)?(Proxy|CAInfo)|Check-Valid-Until|Check-Date|Retries) ' \
  > "$work/90machine" || true

say "making a Debian $suite root file system with mmdebstrap"
mmdebstrap --quiet --variant=minbase --include="ca-certificates$(printf ',%s' "$@")" \
  --aptopt="$work/90machine" --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-exclude=/usr/share/doc/*' --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin' \
  --customize-hook="cp '$work/90machine' \"\$1/etc/apt/apt.conf.d/90machine\"" \
  --customize-hook='if [ -e /etc/ssl/certs/ca-certificates.crt ]; then cp /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/"; fi' \
  "$suite" "$work/layer.tar" "$work/sources.list"

# the four documents of an OCI layout
blobs=$work/layout/blobs/sha256
mkdir -p "$blobs"
add() { # add FILE: moves it to its place and prints `digest size`
  local digest size
  digest=$(sha256sum "$1" | cut -d' ' -f1)
  size=$(stat -c %s "$1")
  mv "$1" "$blobs/$digest"
  echo "sha256:$digest $size"
}
case $(uname -m) in x86_64) architecture=amd64 ;; aarch64) architecture=arm64 ;; *) architecture=$(uname -m) ;; esac
read -r layer layer_size < <(add "$work/layer.tar")
cat > "$work/config" <<JSON
{"architecture": "$architecture", "os": "linux", "created": "$(date -u +%Y-%m-%dT%H:%M:%SZ)",
 "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["bash"]},
 "rootfs": {"type": "layers", "diff_ids": ["$layer"]},
 "history": [{"created": "$(date -u +%Y-%m-%dT%H:%M:%SZ)", "created_by": "mmdebstrap --variant=minbase $suite"}]}
JSON
read -r config config_size < <(add "$work/config")
cat > "$work/manifest" <<JSON
{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
 "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": "$config", "size": $config_size},
 "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": "$layer", "size": $layer_size}]}
JSON
read -r manifest manifest_size < <(add "$work/manifest")
echo '{"imageLayoutVersion": "1.0.0"}' > "$work/layout/oci-layout"
cat > "$work/layout/index.json" <<JSON
{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
 {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "$manifest", "size": $manifest_size,
  "annotations": {"org.opencontainers.image.ref.name": "latest"}}]}
JSON
mkdir -p "$(dirname "$dir")"
rm -rf "$dir"
mv "$work/layout" "$dir"
chmod -R u=rwX,go=rX "$dir"
say "$dir is ready ($((layer_size / 1024 / 1024)) MiB)"
