#!/usr/bin/env bash
# Called by up.sh as root: one real node. containerd and the kubelet run in mount and
# process namespaces of their own, so that their mounts, and every process of every Pod,
# end with one process. Pods have addresses on one bridge and reach this host only.
set -euo pipefail
cd "$(dirname "$0")"
source ./env.sh
state=$KUBE_RUN/node
socket=$state/containerd.sock

# run is what happens inside the namespaces.
run() {
	# What the two keep at fixed places stays in here. Of the kernel's settings the kubelet
	# wants some to have other values: it shall believe so.
	local dir setting
	cp -L /etc/resolv.conf "$state/resolv.conf"
	for dir in $hidden; do mount -t tmpfs -o mode=755 kiln "$dir"; done
	for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
		kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
		mkdir -p "$state/sys/${setting%=*}"
		echo "${setting#*=}" >"$state/sys/${setting%=*}/value"
		mount --bind "$state/sys/${setting%=*}/value" "/proc/sys/${setting%=*}"
	done
	"$KUBE_CONTAINERD" --config "$state/containerd.toml" >"$KUBE_RUN/log/containerd" 2>&1 &
	until ctr -a "$socket" version >/dev/null 2>&1; do kill -0 $!; sleep 0.1; done
	ctr -a "$socket" -n k8s.io images import "$KUBE_BIN/pause.tar"
	"$KUBE_BIN/kubelet" --config="$state/kubelet.yaml" --kubeconfig="$KUBE_RUN/kubelet.kubeconfig" --root-dir="$state/kubelet" \
		--hostname-override=kiln --node-ip="$bridge_ip" --register-node
}
if [ "${1:-}" = run ]; then
	run
	exit
fi

case $KUBE_RUN/ in
/run/* | /var/run/* | /var/log/*) echo "a node does not see the host's /run and /var/log: choose another KUBE_RUN" >&2; exit 1 ;;
esac
mkdir -p "$state"/{cni,kubelet,logs,certs.d} $hidden

# A bridge without an address of its own takes that of one of its ports, and another one
# when that port goes: Pods would look for this host in vain until they ask again.
ip link add "$KUBE_BRIDGE" address 02:6b:69:6c:6e:01 type bridge
ip addr add "$bridge_ip/24" dev "$KUBE_BRIDGE"
# Pods find the API server at its Service's address, and there is no kube-proxy.
ip addr add "$service_ip/32" dev "$KUBE_BRIDGE"
ip link set "$KUBE_BRIDGE" up
start gateway "$KUBE_BIN/etcd" gateway start --listen-addr="$service_ip:443" --endpoints="127.0.0.1:$KUBE_PORT"

# No gateway and no masquerade: the plugin would change the host's forwarding.
cat >"$state/cni/10-bridge.conflist" <<JSON
{"cniVersion": "1.0.0", "name": "pods", "plugins": [{
	"type": "bridge", "bridge": "$KUBE_BRIDGE", "isGateway": false, "ipMasq": false,
	"ipam": {"type": "host-local", "dataDir": "$state/addresses", "routes": [{"dst": "0.0.0.0/0", "gw": "$bridge_ip"}],
		"ranges": [[{"subnet": "$KUBE_NET.0.0/24", "rangeStart": "$KUBE_NET.0.2"}]]}
}]}
JSON

# Version 2 of the format is read by containerd 1.6 and by every 2.
cat >"$state/containerd.toml" <<TOML
version = 2
root = "$state/containerd"
state = "/run/containerd"
[grpc]
  address = "$socket"
[plugins."io.containerd.internal.v1.opt"]
  path = "$state/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  stream_server_address = "127.0.0.1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$KUBE_BIN/cni"
    conf_dir = "$state/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "$KUBE_SNAPSHOTTER"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "$state/certs.d"
TOML

cat >"$state/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $bridge_ip
port: $((KUBE_PORT + 5))
healthzPort: 0
tlsCertFile: $pki/kubelet-server.crt
tlsPrivateKeyFile: $pki/kubelet-server.key
authentication: {x509: {clientCAFile: $pki/ca.crt}}
containerRuntimeEndpoint: unix://$socket
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
podLogsDir: $state/logs
volumePluginDir: $state/volumeplugins
resolvConf: $state/resolv.conf
# Never: images that were imported cannot be pulled again.
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 200Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%}
YAML

start node unshare --mount --pid --fork --kill-child --mount-proc "$PWD/node.sh" run
await node 60 bash -c "source ./env.sh; api '/api/v1/nodes/kiln?pretty=0' | grep -q '\"reason\":\"KubeletReady\"'"
