# Sourced by up.sh: one authority, and a certificate and kubeconfig per component.

new_key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }

# certificate NAME SUBJECT USAGE [NAMES]
certificate() {
	new_key "$pki/$1.key"
	openssl req -new -key "$pki/$1.key" -subj "$2" |
		openssl x509 -req -days 30 -CA "$pki/ca.crt" -CAkey "$pki/ca.key" -CAcreateserial -out "$pki/$1.crt" \
			-extfile <(printf '%s\n' "extendedKeyUsage=$3" ${4:+"subjectAltName=$4"}) 2>/dev/null
}

# kubeconfig NAME: of the certificate of that name.
kubeconfig() {
	cat >"$KUBE_RUN/$1.kubeconfig" <<YAML
apiVersion: v1
kind: Config
clusters: [{name: kiln, cluster: {server: "https://127.0.0.1:$KUBE_PORT", certificate-authority: $pki/ca.crt}}]
users: [{name: $1, user: {client-certificate: $pki/$1.crt, client-key: $pki/$1.key}}]
contexts: [{name: kiln, context: {cluster: kiln, user: $1}}]
current-context: kiln
YAML
}

make_pki() {
	new_key "$pki/ca.key"
	openssl req -x509 -new -key "$pki/ca.key" -subj /CN=kiln -days 30 -out "$pki/ca.crt"
	new_key "$pki/service-accounts.key"
	openssl ec -in "$pki/service-accounts.key" -pubout -out "$pki/service-accounts.pub" 2>/dev/null
	certificate etcd /CN=etcd serverAuth,clientAuth IP:127.0.0.1
	certificate apiserver /CN=kube-apiserver serverAuth "IP:127.0.0.1,IP:$service_ip,DNS:localhost,DNS:kubernetes.default.svc"
	certificate apiserver-kubelet /O=system:masters/CN=kube-apiserver clientAuth
	certificate kubelet-server /CN=kubelet serverAuth "IP:127.0.0.1,IP:$bridge_ip"
	certificate kubelet /O=system:nodes/CN=system:node:kiln clientAuth
	certificate controllers /CN=system:kube-controller-manager clientAuth
	certificate scheduler /CN=system:kube-scheduler clientAuth
	certificate admin /O=system:masters/CN=admin clientAuth
	local name
	for name in kubelet controllers scheduler admin; do kubeconfig "$name"; done
}
