#!/usr/bin/env bash
# build.sh [api|node|all]: builds what go.mod pins into the cache folder of these pins and
# prints that folder: etcd, the control plane and kwok; for a node the kubelet, network
# plugins and an image. About 20 minutes on two cores the first time, nothing the next.
set -euo pipefail
cd "$(dirname "$0")"
source ./env.sh

build() { # build FOLDER PACKAGE...
	mkdir -p "$1"
	CGO_ENABLED=0 GOWORK=off go build -mod=readonly -trimpath -buildvcs=false -ldflags "$flags" -o "$1/" "${@:2}"
}

# pause_image writes what holds every Pod's namespaces, in the form of docker save.
pause_image() {
	local dir
	dir=$(mktemp -d)
	build "$dir" ./pause
	tar -C "$dir" -cf "$dir/layer.tar" pause
	printf '{"os": "linux", "architecture": "%s", "config": {"Entrypoint": ["/pause"]}, "rootfs": {"type": "layers", "diff_ids": ["sha256:%s"]}}' \
		"$(go env GOARCH)" "$(sha256sum "$dir/layer.tar" | cut -d' ' -f1)" >"$dir/config.json"
	echo '[{"Config": "config.json", "RepoTags": ["localhost/pause:1"], "Layers": ["layer.tar"]}]' >"$dir/manifest.json"
	tar -C "$dir" -cf "$KUBE_BIN/pause.tar" config.json manifest.json layer.tar
	rm -r "$dir"
}

# The version is what the components tell each other and users; a plain build has none.
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${version#v1.}
set_version=k8s.io/component-base/version
flags="-s -w -X $set_version.gitVersion=$version -X $set_version.gitMajor=1 -X $set_version.gitMinor=${minor%%.*}"

# What has_api and has_node look for comes last.
kubernetes=k8s.io/kubernetes/cmd
if [ "${1:-all}" != node ] && ! has_api; then
	echo "building the Kubernetes API server and what runs beside it" >&2
	build "$KUBE_BIN" go.etcd.io/etcd/server/v3 $kubernetes/kube-{apiserver,controller-manager,scheduler}
	build "$KUBE_BIN" sigs.k8s.io/kwok/cmd/kwok
	mv "$KUBE_BIN/server" "$KUBE_BIN/etcd"
fi
if [ "${1:-all}" != api ] && ! has_node; then
	echo "building the kubelet and what a node needs beside it" >&2
	plugins=github.com/containernetworking/plugins/plugins
	build "$KUBE_BIN/cni" $plugins/main/{bridge,loopback} $plugins/ipam/host-local
	build "$KUBE_BIN" $kubernetes/kubelet
	pause_image
fi
echo "$KUBE_BIN"
