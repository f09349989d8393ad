#!/usr/bin/env bash
# Starts a Kubernetes cluster on this machine: etcd, API server, controllers and scheduler
# on loopback, and where the machine can a node (see node.sh). It keeps everything in
# KUBE_RUN, which ends with down.sh.
set -euo pipefail
cd "$(dirname "$0")"
source ./env.sh
source ./pki.sh

# One at a time: they look for free ports. What is started must not keep the lock.
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if running apiserver; then
	echo "the cluster is up already: export KUBECONFIG=$KUBE_RUN/admin.kubeconfig"
	exit 0
fi
./down.sh
lacks=$(node_lacks | paste -sd, | sed 's/,/, /g')
case $KUBE_NODE in
auto) if [ -z "$lacks" ]; then node=1; else node=0; fi ;;
1) if [ -n "$lacks" ]; then echo "a node needs $lacks" >&2; exit 1; else node=1; fi ;;
*) node=0 ;;
esac
if [ "$node" = 1 ]; then ./build.sh all >/dev/null; else ./build.sh api >/dev/null; fi

trap '[ $? -eq 0 ] || ./down.sh' EXIT
install -d -m 700 "$KUBE_RUN" "$pki" "$KUBE_RUN/log" "$KUBE_RUN/pid"
taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
if [ -z "$KUBE_PORT" ]; then
	KUBE_PORT=16443
	while taken "$KUBE_PORT" || taken $((KUBE_PORT + 1)) || taken $((KUBE_PORT + 2)); do KUBE_PORT=$((KUBE_PORT + 10)); done
fi
export KUBE_PORT
echo "$KUBE_PORT" >"$KUBE_RUN/port"
make_pki
ln -s "$KUBE_BIN" "$KUBE_RUN/bin"

# It need not survive a power cut, so it need not wait for the disk.
start etcd "$KUBE_BIN/etcd" --name=kiln --data-dir="$KUBE_RUN/etcd" --unsafe-no-fsync --log-level=warn \
	--listen-client-urls="https://127.0.0.1:$((KUBE_PORT + 1))" --advertise-client-urls="https://127.0.0.1:$((KUBE_PORT + 1))" \
	--listen-peer-urls="https://127.0.0.1:$((KUBE_PORT + 2))" --initial-advertise-peer-urls="https://127.0.0.1:$((KUBE_PORT + 2))" \
	--initial-cluster="kiln=https://127.0.0.1:$((KUBE_PORT + 2))" \
	--cert-file="$pki/etcd.crt" --key-file="$pki/etcd.key" --trusted-ca-file="$pki/ca.crt" --client-cert-auth \
	--peer-cert-file="$pki/etcd.crt" --peer-key-file="$pki/etcd.key" --peer-trusted-ca-file="$pki/ca.crt" --peer-client-cert-auth

# A loopback address is no valid endpoint of the Service "kubernetes": nothing reconciles it.
start apiserver "$KUBE_BIN/kube-apiserver" --bind-address=127.0.0.1 --secure-port="$KUBE_PORT" --endpoint-reconciler-type=none \
	--etcd-servers="https://127.0.0.1:$((KUBE_PORT + 1))" --etcd-cafile="$pki/ca.crt" --etcd-certfile="$pki/etcd.crt" --etcd-keyfile="$pki/etcd.key" \
	--tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt" \
	--authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --service-cluster-ip-range="$KUBE_NET.1.0/24" \
	--service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$pki/service-accounts.pub" \
	--service-account-signing-key-file="$pki/service-accounts.key" \
	--kubelet-client-certificate="$pki/apiserver-kubelet.crt" --kubelet-client-key="$pki/apiserver-kubelet.key" \
	--kubelet-certificate-authority="$pki/ca.crt" --kubelet-preferred-address-types=InternalIP
await apiserver 60 api /readyz

# The default limits of calls make Jobs ten times slower.
start controllers "$KUBE_BIN/kube-controller-manager" --bind-address=127.0.0.1 --secure-port="$((KUBE_PORT + 3))" --leader-elect=false \
	--kubeconfig="$KUBE_RUN/controllers.kubeconfig" --use-service-account-credentials \
	--service-account-private-key-file="$pki/service-accounts.key" --root-ca-file="$pki/ca.crt" \
	--kube-api-qps=2000 --kube-api-burst=4000 --concurrent-job-syncs=20 --concurrent-gc-syncs=40
cat >"$KUBE_RUN/scheduler.yaml" <<YAML
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
clientConnection: {kubeconfig: $KUBE_RUN/scheduler.kubeconfig, qps: 2000, burst: 4000}
leaderElection: {leaderElect: false}
YAML
start scheduler "$KUBE_BIN/kube-scheduler" --config="$KUBE_RUN/scheduler.yaml" --bind-address=127.0.0.1 --secure-port="$((KUBE_PORT + 4))"
# Pods are refused until the controllers have made their namespace's service account.
await controllers 60 api /api/v1/namespaces/default/serviceaccounts/default
await scheduler 60 curl -skf "https://127.0.0.1:$((KUBE_PORT + 4))/healthz"
[ "$node" = 0 ] || ./node.sh

if [ "$node" = 1 ]; then echo "Kubernetes is up, with a node"; else echo "Kubernetes is up, without a node${lacks:+, which needs $lacks}"; fi
echo "export KUBECONFIG=$KUBE_RUN/admin.kubeconfig"
