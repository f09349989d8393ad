package kube

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
)

// ParseClass reads a resource class, such as "cpu:1/4,memory:4Gi/16Gi,disk:10Gi/50Gi":
// of each resource what a build requests and, after the slash, what it is limited to,
// in Kubernetes' quantities. Either may be left out. "disk" is ephemeral storage; other
// names are the cluster's.
func ParseClass(text string) (corev1.ResourceRequirements, error) {
	class := corev1.ResourceRequirements{Requests: corev1.ResourceList{}, Limits: corev1.ResourceList{}}
	for part := range strings.SplitSeq(text, ",") {
		name, amounts, ok := strings.Cut(strings.TrimSpace(part), ":")
		if !ok || len(validation.IsQualifiedName(name)) > 0 {
			return class, fmt.Errorf("resource class: %q is not of the form cpu:1/4", part)
		}
		kind := corev1.ResourceName(name)
		if name == "disk" {
			kind = corev1.ResourceEphemeralStorage
		}
		request, limit, _ := strings.Cut(amounts, "/")
		for amount, list := range map[*string]corev1.ResourceList{&request: class.Requests, &limit: class.Limits} {
			if *amount == "" {
				continue
			}
			q, err := resource.ParseQuantity(*amount)
			if err != nil || q.Sign() < 0 {
				return class, fmt.Errorf("resource class: %s %q is not a quantity such as 500m or 4Gi", name, *amount)
			}
			list[kind] = q
		}
	}
	return class, nil
}
