#!/usr/bin/env bash
# Ends what up.sh started, by process id, and removes all that it made.
set -euo pipefail
cd "$(dirname "$0")"
source ./env.sh
[ -d "$KUBE_RUN" ] || exit 0

had_node=$(cat "$KUBE_RUN/pid/node" 2>/dev/null || true)
stop node KILL
stop gateway
stop scheduler
stop controllers
stop apiserver
stop etcd
if [ -n "$had_node" ]; then
	for pods in /sys/fs/cgroup/kubepods /sys/fs/cgroup/*/kubepods; do
		[ ! -d "$pods" ] || find "$pods" -depth -type d -exec rmdir {} +
	done
fi
[ -z "$had_node" ] || rmdir --ignore-fail-on-non-empty /var/lib/kubelet /var/lib/cni
if [ -d "$KUBE_RUN/node" ] && ip link show "$KUBE_BRIDGE" >/dev/null 2>&1; then ip link del "$KUBE_BRIDGE"; fi
rm -rf "$KUBE_RUN"
