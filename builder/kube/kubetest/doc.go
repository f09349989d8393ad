// Package kubetest gives tests the Kubernetes cluster that `make kube-up` starts: a
// namespace with a worker's Role in it, calls that are counted, images on its node.
package kubetest
