# Sourced by the scripts beside it. Every KUBE_ name can be set from outside. Every copy of
# the repository has a cluster of its own; one of all clusters of a machine has a node.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kiln
pins=$(cat "$here/go.mod" "$here/go.sum" | sha256sum | cut -c1-12)
: "${KUBE_BIN:=$cache/kubernetes-$pins}" # what build.sh made
# Certificates, etcd's data, logs, process ids.
: "${KUBE_RUN:=$cache/cluster-$(sha256sum <<<"$here" | cut -c1-8)}"
# The API server's port; the next five are taken too. Free ones unless it is set.
: "${KUBE_PORT:=$(cat "$KUBE_RUN/port" 2>/dev/null || true)}"
: "${KUBE_NODE:=auto}"                   # 1: a node, 0: none, auto: where the machine can
: "${KUBE_BRIDGE:=kiln0}"                # where Pods reach the host as $KUBE_NET.0.1
: "${KUBE_NET:=10.88}"                   # Pods are in .0.0/24, Services in .1.0/24
: "${KUBE_SNAPSHOTTER:=overlayfs}"       # containerd's; native where / is an overlay itself
: "${KUBE_CONTAINERD:=containerd}"

bridge_ip=$KUBE_NET.0.1
service_ip=$KUBE_NET.1.1
pki=$KUBE_RUN/pki
# Folders that a node sees empty versions of.
hidden="/run /var/log /var/lib/kubelet /var/lib/cni"

has_api() { [ -x "$KUBE_BIN/etcd" ]; }
has_node() { [ -x "$KUBE_BIN/kubelet" ] && [ -f "$KUBE_BIN/pause.tar" ]; }

# node_lacks says what the machine lacks of what a node needs; nothing when it can.
node_lacks() {
	[ "$(id -u)" -eq 0 ] || { echo root; return; }
	local program
	for program in "$KUBE_CONTAINERD" runc ctr ip unshare mount; do
		command -v "$program" >/dev/null || echo "$program"
	done
	[ ! -e "/sys/class/net/$KUBE_BRIDGE" ] || echo "a bridge of its own (KUBE_BRIDGE: $KUBE_BRIDGE exists)"
	if [ -d /sys/fs/cgroup/memory ]; then
		[ -w /sys/fs/cgroup/memory ] || echo "a writable /sys/fs/cgroup/memory"
	elif ! grep -qw memory /sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || [ ! -w /sys/fs/cgroup ]; then
		echo "a writable /sys/fs/cgroup that has the memory controller"
	fi
}

# A process is known by its id and the time it started at: ids are used again. One that
# has ended and that nobody has waited for has none.
started_at() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '$1 != "Z" { print $20 }'; }

# start NAME COMMAND...: in the background, with a log and a process id of its own.
start() {
	setsid "${@:2}" >"$KUBE_RUN/log/$1" 2>&1 </dev/null 9>&- &
	echo "$! $(started_at $!)" >"$KUBE_RUN/pid/$1"
}

running() {
	local pid since
	read -r pid since 2>/dev/null <"$KUBE_RUN/pid/$1" && [ -n "$since" ] && [ "$(started_at "$pid")" = "$since" ]
}

# stop NAME: at once, since nothing of it will be needed again.
stop() {
	local pid
	if running "$1"; then
		read -r pid _ <"$KUBE_RUN/pid/$1"
		kill -s KILL "$pid" || true
		while running "$1"; do sleep 0.05; done
	fi
	rm -f "$KUBE_RUN/pid/$1"
}

# await NAME SECONDS COMMAND...: until the command succeeds, while NAME runs.
await() {
	local until=$((SECONDS + $2))
	until "${@:3}" >/dev/null 2>&1; do
		if ! running "$1" || [ "$SECONDS" -ge "$until" ]; then
			echo "$1 did not get ready: ${*:3}" >&2
			tail -n 20 "$KUBE_RUN/log/$1" >&2
			return 1
		fi
		sleep 0.1
	done
}

# api PATH: asks the API server as the administrator.
api() { curl -sf --max-time 5 --cacert "$pki/ca.crt" --cert "$pki/admin.crt" --key "$pki/admin.key" "https://127.0.0.1:$KUBE_PORT$1"; }
