package kube

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"kiln/builder"
)

// lostAfter is for how many seconds a build stays bound to a node that does not
// answer; Kubernetes' own default is 300.
const lostAfter = 60

// schedule completes the spec by what configuration and function ask for, the
// function's last.
func schedule(spec *corev1.PodSpec, plan builder.Plan, cfg Config) error {
	s := plan.Scheduling
	system, arch, _ := strings.Cut(plan.Platform, "/")
	arch, _, _ = strings.Cut(arch, "/")
	// Commands run on the node's own processor.
	spec.NodeSelector = map[string]string{corev1.LabelOSStable: system, corev1.LabelArchStable: arch}
	maps.Copy(spec.NodeSelector, cfg.NodeSelector)
	maps.Copy(spec.NodeSelector, s.NodeSelector)
	maps.DeleteFunc(spec.NodeSelector, func(_, value string) bool { return value == "" })
	spec.NodeName = s.NodeName
	spec.PriorityClassName = cmp.Or(s.PriorityClass, cfg.PriorityClass)
	spec.ServiceAccountName = cmp.Or(s.ServiceAccount, cfg.ServiceAccount)
	if name := s.ServiceAccount; name != "" && name != cfg.ServiceAccount && !slices.Contains(cfg.ServiceAccounts, name) {
		return invalid("spec.service_account", fmt.Errorf("builds may not use %q; have the operator allow it with kube.service_accounts", name))
	}
	if len(s.Affinity) > 0 {
		spec.Affinity = &corev1.Affinity{}
		if err := decode(s.Affinity, spec.Affinity); err != nil {
			return invalid("spec.affinity", err)
		}
	}
	var own []corev1.Toleration
	if len(s.Tolerations) > 0 {
		if err := decode(s.Tolerations, &own); err != nil {
			return invalid("spec.tolerations", err)
		}
	}
	spec.Tolerations = slices.Concat(cfg.Tolerations, own)
	for _, taint := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
		if !slices.ContainsFunc(spec.Tolerations, func(t corev1.Toleration) bool { return t.Key == taint }) {
			spec.Tolerations = append(spec.Tolerations, corev1.Toleration{
				Key: taint, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: new(int64(lostAfter)),
			})
		}
	}
	return nil
}

func decode(raw json.RawMessage, into any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

func invalid(field string, err error) error {
	return &builder.Error{Kind: builder.KindInvalidRequest, Op: "reading " + field, Err: err}
}
