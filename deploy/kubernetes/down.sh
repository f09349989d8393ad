#!/usr/bin/env bash
# Ends what up.sh started, by process id, and removes all that it made.
set -euo pipefail
cd "$(dirname "$0")"
source ./env.sh
[ -d "$KUBE_RUN" ] || exit 0

for name in node gateway scheduler controllers apiserver etcd; do stop "$name"; done
if [ -d "$KUBE_RUN/node" ]; then
	for pods in /sys/fs/cgroup/kubepods /sys/fs/cgroup/*/kubepods; do
		# They are in use until the last process of the node's namespace is gone.
		for _ in {1..100}; do
			[ -d "$pods" ] || break
			find "$pods" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.1
		done
	done
	ip link del "$KUBE_BRIDGE" 2>/dev/null || true
	rmdir /var/lib/kubelet /var/lib/cni 2>/dev/null || true
fi
rm -rf "$KUBE_RUN"
