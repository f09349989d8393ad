package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"kiln/builder"
)

// DefaultClass is the resource class of projects that have none of their own.
const DefaultClass = "default"

const gib = int64(1) << 30

// maxInstance leaves room for the rest of a Job's name, of at most 63 characters.
const maxInstance = 30

// Registries is what an Engine needs to know of image registries. Implementations are
// safe for concurrent use.
type Registries interface {
	// Access returns what it takes to use the registry at host (as in references), with
	// the named credentials (builder.Plan.RegistrySecret) first. Errors are of
	// builder's *Error.
	Access(ctx context.Context, host, secret string) (builder.Access, error)
}

// Config of an Engine. Namespace and the two images are required; every other field
// has a default.
type Config struct {
	// Namespace is where Jobs and their Secrets are made.
	Namespace string
	// Instance tells the Jobs of this installation from others in the namespace, and
	// begins their names. All workers that share a ledger share it. A DNS label of at most
	// 30 characters; defaults to "kiln".
	Instance string
	// ContextImage is an image whose entrypoint is kiln, ExecutorImage one with the
	// Kaniko executor at /kaniko/executor.
	ContextImage, ExecutorImage string
	// PullPolicy of both images. Defaults to IfNotPresent.
	PullPolicy corev1.PullPolicy
	// PullSecrets are the Secrets that the nodes pull both images with.
	PullSecrets []string
	// Registries knows how the registries that a build names are reached. Nil: by an
	// anonymous user, and by plain HTTP on loopback.
	Registries Registries
	// CredentialHelpers that the executor may use for the identity of the Pod's service
	// account: env, google, ecr, acr, gitlab.
	CredentialHelpers []string
	// SourceSettings are given to whoever fetches a source, see Prepare. They may be
	// secret.
	SourceSettings []byte

	// Classes are the resource classes by name. DefaultClass is added when it is
	// missing: requests of 0.5 cores, 1 GiB memory and 5 GiB disk, limits of 4 GiB
	// memory and 20 GiB disk. Limits of a plan take the place of a class's; a limit of
	// processes is the node's to set.
	Classes map[string]corev1.ResourceRequirements
	// ProjectClasses names the class of a project.
	ProjectClasses map[string]string
	// Zero are resources that builds get none of, as limits of 0 ("nvidia.com/gpu").
	Zero []string
	// WorkspaceSize bounds Dockerfile, context and source. Defaults to 2 GiB.
	WorkspaceSize int64
	// WorkspaceInMemory keeps them in memory, which counts to the memory limit.
	WorkspaceInMemory bool

	// NodeSelector, Tolerations and PriorityClass are those of every build; the
	// function's add to them or, under the same name, go first.
	NodeSelector  map[string]string
	Tolerations   []corev1.Toleration
	PriorityClass string
	// ServiceAccount of builds whose function names none. Its token is not mounted.
	// Empty: the namespace's default.
	ServiceAccount string
	// ServiceAccounts are those that functions may name.
	ServiceAccounts []string
	// PodLabels and PodAnnotations are added to Pods, for a cloud's workload identity
	// for example. Kiln's own go first.
	PodLabels, PodAnnotations map[string]string
	// RuntimeClass of Pods (gVisor, Kata). Empty: the node's default.
	RuntimeClass string
	// UserNamespaces gives every Pod user ids of its own (hostUsers: false).
	UserNamespaces bool

	// Timeout bounds builds whose plan does not say. Defaults to 1 h.
	Timeout time.Duration
	// Margin is added to the limit of the build to make that of its Job, which ends
	// builds that no worker watches. Defaults to 5 min.
	Margin time.Duration
	// TTL is how long a finished Job stays that no worker collects. Defaults to 15 min.
	TTL time.Duration
	// Waits bound what holds a build up before it runs.
	Waits Waits
	// Grace is how long stopping a Job may take. Defaults to 30 s.
	Grace time.Duration
	// RetryFor is how long calls of the API server are repeated that fail for no fault
	// of ours. Defaults to 1 min.
	RetryFor time.Duration
	// SweepEvery is the time between sweeps of forgotten Jobs. Defaults to 10 min.
	SweepEvery time.Duration

	// component tells the Jobs of builds and of runs apart.
	component string
}

// Waits say for how long a build may be held up, by reason. It fails when the time is
// over, with the reason in its error.
type Waits struct {
	// Refused: the cluster refuses to make the Pod (quota, admission). Defaults to 20 s.
	Refused time.Duration
	// Unschedulable: no node takes the Pod. Defaults to 5 min, in which a cluster may grow.
	Unschedulable time.Duration
	// Image: a node cannot pull one of the two images. Defaults to 1 min.
	Image time.Duration
	// Container: a container cannot be made. Defaults to 30 s.
	Container time.Duration
	// Start: anything else, pulling included. Defaults to 15 min.
	Start time.Duration
	// Settle: the parts of a Job's status disagree. Defaults to 10 s.
	Settle time.Duration
}

func (c Config) withDefaults() Config {
	setDefault(&c.Instance, "kiln")
	setDefault(&c.component, "build")
	setDefault(&c.PullPolicy, corev1.PullIfNotPresent)
	setDefault(&c.WorkspaceSize, 2*gib)
	setDefault(&c.Timeout, time.Hour)
	setDefault(&c.Margin, 5*time.Minute)
	setDefault(&c.TTL, 15*time.Minute)
	setDefault(&c.Waits.Refused, 20*time.Second)
	setDefault(&c.Waits.Unschedulable, 5*time.Minute)
	setDefault(&c.Waits.Image, time.Minute)
	setDefault(&c.Waits.Container, 30*time.Second)
	setDefault(&c.Waits.Start, 15*time.Minute)
	setDefault(&c.Waits.Settle, 10*time.Second)
	setDefault(&c.Grace, 30*time.Second)
	setDefault(&c.RetryFor, time.Minute)
	setDefault(&c.SweepEvery, 10*time.Minute)
	classes := map[string]corev1.ResourceRequirements{DefaultClass: defaultClass()}
	maps.Copy(classes, c.Classes)
	c.Classes = classes
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func defaultClass() corev1.ResourceRequirements {
	return corev1.ResourceRequirements{
		Requests: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("500m"), corev1.ResourceMemory: resource.MustParse("1Gi"),
			corev1.ResourceEphemeralStorage: resource.MustParse("5Gi"),
		},
		Limits: corev1.ResourceList{
			corev1.ResourceMemory: resource.MustParse("4Gi"), corev1.ResourceEphemeralStorage: resource.MustParse("20Gi"),
		},
	}
}

func (c Config) validate() error {
	var faults []error
	check := func(name, value string, problems []string) {
		if len(problems) > 0 {
			faults = append(faults, fmt.Errorf("%s %q: %s", name, value, strings.Join(problems, "; ")))
		}
	}
	check("namespace", c.Namespace, validation.IsDNS1123Label(c.Namespace))
	check("instance", c.Instance, validation.IsDNS1123Label(c.Instance))
	if len(c.Instance) > maxInstance {
		faults = append(faults, fmt.Errorf("instance %q is longer than %d characters", c.Instance, maxInstance))
	}
	for name, image := range map[string]string{"kiln's own image": c.ContextImage, "executor image": c.ExecutorImage} {
		if image == "" {
			faults = append(faults, fmt.Errorf("%s is not set", name))
		}
	}
	for key, value := range c.NodeSelector {
		check("node selector", key, validation.IsQualifiedName(key))
		check("node selector "+key, value, validation.IsValidLabelValue(value))
	}
	for key, value := range c.PodLabels {
		check("Pod label", key, validation.IsQualifiedName(key))
		check("Pod label "+key, value, validation.IsValidLabelValue(value))
	}
	for key := range c.PodAnnotations {
		check("Pod annotation", key, validation.IsQualifiedName(strings.ToLower(key)))
	}
	for _, name := range append(slices.Clone(c.ServiceAccounts), c.ServiceAccount) {
		if name != "" {
			check("service account", name, validation.IsDNS1123Subdomain(name))
		}
	}
	faults = append(faults, c.checkClasses(), c.checkTimes())
	return errors.Join(faults...)
}

func (c Config) checkClasses() error {
	var faults []error
	for project, class := range c.ProjectClasses {
		if _, ok := c.Classes[class]; !ok {
			faults = append(faults, fmt.Errorf("project %s has resource class %q, which is not defined", project, class))
		}
	}
	for name, class := range c.Classes {
		for kind, limit := range class.Limits {
			if request, ok := class.Requests[kind]; ok && request.Cmp(limit) > 0 {
				faults = append(faults, fmt.Errorf("resource class %s requests more %s (%s) than its limit of %s", name, kind, &request, &limit))
			}
		}
	}
	return errors.Join(faults...)
}

func (c Config) checkTimes() error {
	for _, t := range []time.Duration{
		c.Timeout, c.Margin, c.TTL, c.Grace, c.RetryFor, c.SweepEvery, c.Waits.Refused, c.Waits.Unschedulable,
		c.Waits.Image, c.Waits.Container, c.Waits.Start, c.Waits.Settle, time.Duration(c.WorkspaceSize),
	} {
		if t < 0 {
			return errors.New("times and sizes must not be negative")
		}
	}
	return nil
}

// resources returns what the containers of the plan may use.
func (c Config) resources(plan builder.Plan) corev1.ResourceRequirements {
	class, ok := c.Classes[c.ProjectClasses[plan.Project]]
	if !ok {
		class = c.Classes[DefaultClass]
	}
	r := corev1.ResourceRequirements{Requests: corev1.ResourceList{}, Limits: corev1.ResourceList{}}
	maps.Copy(r.Requests, class.Requests)
	maps.Copy(r.Limits, class.Limits)
	limit := func(name corev1.ResourceName, q *resource.Quantity) {
		r.Limits[name] = *q
		if request, ok := r.Requests[name]; ok && request.Cmp(*q) > 0 {
			r.Requests[name] = *q
		}
	}
	if n := plan.Limits.Memory; n > 0 {
		limit(corev1.ResourceMemory, resource.NewQuantity(n, resource.BinarySI))
	}
	if n := plan.Limits.Disk; n > 0 {
		limit(corev1.ResourceEphemeralStorage, resource.NewQuantity(n, resource.BinarySI))
	}
	if cores := plan.Limits.CPU; cores > 0 {
		limit(corev1.ResourceCPU, resource.NewMilliQuantity(max(int64(cores*1000), 1), resource.DecimalSI))
	}
	for _, name := range c.Zero {
		r.Limits[corev1.ResourceName(name)] = resource.Quantity{Format: resource.DecimalSI}
	}
	return r
}

// limits returns the plan's limits, completed by its resource class.
func (c Config) limits(plan builder.Plan) builder.Limits {
	r, l := c.resources(plan).Limits, plan.Limits
	l.Memory, l.Disk = r.Memory().Value(), r.StorageEphemeral().Value()
	setDefault(&l.Timeout, c.Timeout)
	return l
}
