package tests

import (
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// everyCase runs a test with the objects of each case.
func everyCase(t *testing.T, test func(t *testing.T, all []runtime.Object)) {
	t.Helper()
	for name, values := range cases(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rendered, err := render(values)
			if err != nil {
				t.Fatal(err)
			}
			test(t, objects(t, rendered))
		})
	}
}

// only returns the objects of a type.
func only[T runtime.Object](all []runtime.Object) []T {
	var found []T
	for _, object := range all {
		if o, ok := object.(T); ok {
			found = append(found, o)
		}
	}
	return found
}

func TestPodsAreAllowedAsLittleAsPossible(t *testing.T) {
	t.Parallel()
	everyCase(t, func(t *testing.T, all []runtime.Object) {
		t.Helper()
		var pods []corev1.PodSpec
		for _, d := range only[*appsv1.Deployment](all) {
			pods = append(pods, d.Spec.Template.Spec)
		}
		for _, j := range only[*batchv1.Job](all) {
			pods = append(pods, j.Spec.Template.Spec)
			if token := j.Spec.Template.Spec.AutomountServiceAccountToken; token == nil || *token {
				t.Error("the Job has a token")
			}
		}
		for _, pod := range pods {
			// The Pod Security Standard "restricted", and a read-only root.
			s := pod.SecurityContext
			if s == nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot || s.SeccompProfile == nil || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
				t.Errorf("Pod: %+v", s)
			}
			if pod.HostNetwork || pod.HostPID || pod.HostIPC || len(pod.InitContainers) > 0 || len(pod.Containers) != 1 {
				t.Errorf("Pod: %+v", pod)
			}
			c := pod.Containers[0].SecurityContext
			if c == nil || c.AllowPrivilegeEscalation == nil || *c.AllowPrivilegeEscalation || c.ReadOnlyRootFilesystem == nil || !*c.ReadOnlyRootFilesystem ||
				c.Capabilities == nil || !slices.Equal(c.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(c.Capabilities.Add) > 0 {
				t.Errorf("container: %+v", c)
			}
			if pod.Containers[0].Resources.Limits.Memory().IsZero() {
				t.Error("no memory limit")
			}
		}
	})
}

func TestObjectsOfAnInstallationFitTogether(t *testing.T) {
	t.Parallel()
	everyCase(t, func(t *testing.T, all []runtime.Object) {
		t.Helper()
		worker := only[*appsv1.Deployment](all)[0]
		pod := labels.Set(worker.Spec.Template.Labels)
		selects := func(what string, s *metav1.LabelSelector) {
			if selector, err := metav1.LabelSelectorAsSelector(s); err != nil || selector.Empty() || !selector.Matches(pod) {
				t.Errorf("%s does not select workers: %v, %v", what, s, err)
			}
		}
		selects("Deployment", worker.Spec.Selector)
		for _, s := range only[*corev1.Service](all) {
			selects("Service", &metav1.LabelSelector{MatchLabels: s.Spec.Selector})
		}
		for _, b := range only[*rbacv1.RoleBinding](all) {
			bound := slices.ContainsFunc(only[*rbacv1.Role](all), func(r *rbacv1.Role) bool { return r.Name == b.RoleRef.Name && r.Namespace == b.Namespace })
			if !bound || b.Subjects[0].Name != worker.Spec.Template.Spec.ServiceAccountName || b.Subjects[0].Namespace != worker.Namespace {
				t.Errorf("binding = %+v", b)
			}
		}
	})
}

func TestFilesThatSettingsNameAreMounted(t *testing.T) {
	t.Parallel()
	everyCase(t, func(t *testing.T, all []runtime.Object) {
		t.Helper()
		worker := only[*appsv1.Deployment](all)[0].Spec.Template.Spec
		for word := range strings.FieldsSeq(only[*corev1.ConfigMap](all)[0].Data["kiln.yaml"]) {
			if strings.HasPrefix(word, "/etc/kiln/") && !mounted(worker, word) {
				t.Errorf("nothing is mounted at %s", word)
			}
		}
		for _, job := range only[*batchv1.Job](all) {
			for _, e := range job.Spec.Template.Spec.Containers[0].Env {
				if strings.HasPrefix(e.Value, "/etc/kiln/") && !mounted(job.Spec.Template.Spec, e.Value) {
					t.Errorf("nothing is mounted at %s", e.Value)
				}
			}
		}
	})
}

// mounted reports whether a volume has the file, or folders of volumes are below it.
func mounted(pod corev1.PodSpec, file string) bool {
	for _, m := range pod.Containers[0].VolumeMounts {
		if path.Dir(m.MountPath) == file {
			return true
		}
		if m.MountPath != path.Dir(file) {
			continue
		}
		for _, v := range pod.Volumes {
			if v.Name != m.Name {
				continue
			}
			var items []corev1.KeyToPath
			switch {
			case v.Secret != nil:
				items = v.Secret.Items
			case v.ConfigMap != nil:
				items = v.ConfigMap.Items
			}
			if len(items) == 0 || slices.ContainsFunc(items, func(i corev1.KeyToPath) bool { return i.Path == path.Base(file) }) {
				return true
			}
		}
	}
	return false
}

func TestPodsLiveLongerThanTheirSoftStop(t *testing.T) {
	t.Parallel()
	everyCase(t, func(t *testing.T, all []runtime.Object) {
		t.Helper()
		var settings struct {
			Worker struct {
				SoftStop string `json:"soft_stop"`
			} `json:"worker"`
		}
		if err := yaml.Unmarshal([]byte(only[*corev1.ConfigMap](all)[0].Data["kiln.yaml"]), &settings); err != nil {
			t.Fatal(err)
		}
		soft, err := time.ParseDuration(settings.Worker.SoftStop)
		grace := only[*appsv1.Deployment](all)[0].Spec.Template.Spec.TerminationGracePeriodSeconds
		// Closing the logs of builds takes up to 10 s, and handing them back as long.
		if err != nil || grace == nil || time.Duration(*grace)*time.Second < soft+20*time.Second {
			t.Errorf("soft stop %s (%v), grace %v", soft, err, grace)
		}
	})
}
