#!/bin/bash
# The builders that tests and benchmarks compare with, from Debian's packages alone.
#
#   peers.sh install [DIR]    install what is missing (apt; root) and unpack Docker below DIR
#   peers.sh start   [DIR]    start dockerd and a registry unless they run already
#   peers.sh running [DIR]    exit 0 when both run
#   peers.sh env     [DIR]    print the settings, for eval
#   peers.sh stop    [DIR]    stop what `start` started, and nothing else
#
# DIR is target/peers by default. Every command may be repeated; what is already there costs nothing.
#
# buildah, podman, skopeo, umoci, runc and crun come from the machine's own Debian. dockerd (with BuildKit inside), the
# docker client and buildx come from a newer suite (PEERS_SUITE, sid by default) and are only unpacked into DIR: the
# suite never becomes a package source of the machine. Which mirror, proxy and keys are used is the machine's own apt
# configuration. The image store of this dockerd is containerd's, the one that can write OCI archives.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
verb=${1:?"install, start, running, env or stop"}
dir=${2:-$here/../target/peers}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd -P)
suite=${PEERS_SUITE:-sid}
port=${PEERS_PORT:-5077}

packages=(ca-certificates runc crun buildah podman skopeo umoci docker-registry uidmap busybox-static mmdebstrap passt
  qemu-user-static iptables libarchive-tools python3 git)
unpacked=(docker.io docker-cli containerd docker-buildx)

# Sockets have short names only, so they live apart from a DIR that may be deep.
run=/run/build-engine-peers/$(printf %s "$dir" | cksum | cut -d' ' -f1)
docker="$dir/docker/usr/bin/docker"
socket="unix://$run/docker.sock"

say() { echo "peers: $*" >&2; }
need_root() { [ "$(id -u)" = 0 ] || { say "\`$verb\` needs root"; exit 3; }; }

missing_packages() {
  local package
  for package in "${packages[@]}"; do
    dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || echo "$package"
  done
}

install_packages() {
  local missing policy=/usr/sbin/policy-rc.d
  missing=$(missing_packages)
  [ -n "$missing" ] || return 0
  say "installing with apt:" $missing
  # No maintainer script may start a service on a machine that only wants the programs.
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' > $policy
    chmod 755 $policy
    trap "rm -f $policy" EXIT
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq -o DPkg::Lock::Timeout=300 update
  # shellcheck disable=SC2086
  apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $missing > /dev/null
}

# apt with lists, cache and sources of its own below DIR.
side_apt() {
  local state=$dir/apt
  apt-get -qq -o Dir::State="$state" -o Dir::State::lists="$state/lists" -o Dir::State::status="$state/status" \
    -o Dir::Cache="$state/cache" -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=- \
    -o APT::Sandbox::User=root "$@"
}

debian_mirror() {
  local format='$(SITE) $(CREATED_BY) $(ORIGIN) $(LABEL)'
  { apt-get indextargets --format "$format" || true; } | awk '$2 == "Packages" && $3 == "Debian" && $4 == "Debian" { print $1; exit }'
}

install_docker() {
  local stamp="$dir/docker/.complete" mirror package
  if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$suite" ]; then return 0; fi
  mirror=$(debian_mirror)
  if [ -z "$mirror" ]; then
    apt-get -qq -o DPkg::Lock::Timeout=300 update
    mirror=$(debian_mirror)
  fi
  [ -n "$mirror" ] || { say "apt knows no Debian mirror"; exit 3; }
  say "unpacking from Debian $suite into $dir/docker: ${unpacked[*]}"
  rm -rf "$dir/docker" "$dir/debs"
  mkdir -p "$dir/docker" "$dir/debs" "$dir/apt/lists/partial" "$dir/apt/cache/archives/partial"
  : > "$dir/apt/status"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" > "$dir/apt/sources.list"
  side_apt update
  (cd "$dir/debs" && side_apt download "${unpacked[@]}")
  for package in "$dir"/debs/*.deb; do dpkg -x "$package" "$dir/docker"; done
  rm -rf "$dir/debs"
  mkdir -p "$dir/docker-config/cli-plugins"
  echo '{}' > "$dir/docker-config/config.json"
  ln -sf "$dir/docker/usr/libexec/docker/cli-plugins/docker-buildx" "$dir/docker-config/cli-plugins/docker-buildx"
  echo "$suite" > "$stamp"
}

# crun refuses the hybrid of cgroup v1 and v2; runc runs on all three layouts.
oci_runtime() {
  if [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then echo crun; else echo runc; fi
}

# Without CAP_SYS_RESOURCE limits cannot be raised, which podman and newer buildah try unless told others (low ones hold
# everywhere); buildah before 1.30 leaves limits alone and must not be told.
write_configuration() {
  local limits='default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]' engine
  mkdir -p "$dir/conf" "$dir/registry"
  engine=$(printf '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "%s"' "$(oci_runtime)")
  printf '[containers]\n%s\n%s\n' "$limits" "$engine" > "$dir/conf/podman.conf"
  if ! printf '1.30\n%s\n' "$(buildah --version | awk '{ print $3 }')" | sort -VC; then limits=; fi
  printf '[containers]\n%s\n%s\n' "$limits" "$engine" > "$dir/conf/containers.conf"
  printf 'unqualified-search-registries = []\n[[registry]]\nlocation = "127.0.0.1:%s"\ninsecure = true\n' "$port" \
    > "$dir/conf/registries.conf"
  cat > "$dir/conf/registry.yml" <<YML
version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $dir/registry}, delete: {enabled: true}}
http: {addr: "127.0.0.1:$port"}
YML
  printf '{"features": {"containerd-snapshotter": true}, "insecure-registries": ["127.0.0.1:%s"]}\n' "$port" \
    > "$dir/conf/daemon.json"
}

# A container or a bare virtual machine may lack what an init system mounts.
mount_what_daemons_need() {
  grep -q ' /sys/fs/cgroup' /proc/mounts || mount -t cgroup2 cgroup2 /sys/fs/cgroup
  [ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc 2>/dev/null || return 0
  [ "$(uname -m)" = aarch64 ] || [ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] || [ ! -e /usr/lib/binfmt.d/qemu-aarch64.conf ] ||
    tr -d '\n' < /usr/lib/binfmt.d/qemu-aarch64.conf > /proc/sys/fs/binfmt_misc/register || true
}

# running NAME: the process that `start` noted is still the one it started (a process id alone may have been reused).
running() {
  local pid started
  read -r pid started 2>/dev/null < "$run/$1.pid" || return 1
  [ "$(start_time "$pid")" = "$started" ]
}
start_time() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

spawn() { # spawn NAME COMMAND...
  local name=$1 pid
  shift
  setsid "$@" > "$run/$name.log" 2>&1 < /dev/null 9>&- &
  pid=$!
  echo "$pid $(start_time "$pid")" > "$run/$name.pid"
}

wait_for() { # wait_for NAME COMMAND...
  local name=$1 try
  shift
  for try in $(seq 300); do
    if "$@" > /dev/null 2>&1; then return 0; fi
    running "$name" || break
    sleep 0.1
  done
  say "$name did not come up; the end of $run/$name.log:"
  tail -5 "$run/$name.log" >&2
  return 1
}

start() {
  if running dockerd && running registry && [ ! -w "$dir/conf" ]; then return 0; fi
  need_root
  mkdir -p "$run"
  write_configuration
  if running dockerd && running registry; then return 0; fi
  mount_what_daemons_need
  if ! running dockerd; then
    say "starting dockerd ($socket)"
    rm -f "$run/docker.sock" "$run/dockerd-pid"
    PATH="$dir/docker/usr/bin:$dir/docker/usr/sbin:/usr/sbin:/usr/bin:/sbin:/bin" spawn dockerd "$dir/docker/usr/sbin/dockerd" \
      --config-file "$dir/conf/daemon.json" --iptables=false --ip6tables=false --bridge=none \
      --data-root "$dir/dockerd" --exec-root "$run/exec" --pidfile "$run/dockerd-pid" -H "$socket"
    wait_for dockerd "$docker" -H "$socket" version
  fi
  if ! running registry; then
    say "starting docker-registry (127.0.0.1:$port)"
    spawn registry docker-registry serve "$dir/conf/registry.yml"
    wait_for registry bash -c "echo > /dev/tcp/127.0.0.1/$port"
  fi
}

settings() {
  cat <<ENV
export DOCKER_CONFIG=$dir/docker-config
export DOCKER_HOST=$socket
export PEERS_DOCKER=$docker
export PEERS_REGISTRY=127.0.0.1:$port
export PEERS_DOCKERD_PID=$(cut -d' ' -f1 "$run/dockerd.pid" 2> /dev/null)
export PEERS_PODMAN_CONF=$dir/conf/podman.conf
export CONTAINERS_CONF=$dir/conf/containers.conf
export CONTAINERS_REGISTRIES_CONF=$dir/conf/registries.conf
export PEERS_STORAGE="--root $dir/containers/root --runroot $run/containers"
export PEERS_RUNTIME=$(oci_runtime)
ENV
}

stop() {
  local name pid try
  for name in dockerd registry; do
    running "$name" || continue
    read -r pid _ < "$run/$name.pid"
    say "stopping $name ($pid)"
    kill "$pid"
    for try in $(seq 150); do running "$name" || break; sleep 0.1; done
    running "$name" && kill -9 "$pid"
    rm -f "$run/$name.pid"
  done
}

exec 9> "$dir/lock"
flock 9
case $verb in
  install) if [ -n "$(missing_packages)" ] || [ ! -e "$dir/docker/.complete" ]; then need_root; fi; install_packages; install_docker ;;
  start) start ;;
  running) running dockerd && running registry ;;
  env) settings ;;
  stop) stop ;;
  *) say "unknown command \`$verb\`: install, start, running, env or stop"; exit 2 ;;
esac
