package main

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// layer is what a package may import directly outside the standard library, and
// what it must not reach through anything. Entries match whole path elements.
type layer struct {
	imports []string
	never   []string
}

// layers is the picture of docs/architecture.md. A package that is not in it fails
// the test, and so does an import that its line does not name.
var layers = map[string]layer{
	"kiln/schemas": {
		imports: []string{"github.com/santhosh-tekuri/jsonschema/v6", "golang.org/x/text"},
		never:   wire,
	},
	"kiln/events": {
		imports: []string{"kiln/schemas"},
		never:   append([]string{"github.com/nats-io"}, wire...),
	},
	"kiln/events/natsbus": {
		imports: []string{
			"kiln/events", "github.com/nats-io/nats.go", "github.com/nats-io/nkeys", "go.opentelemetry.io/otel",
			"github.com/cenkalti/backoff/v6", "github.com/rs/zerolog",
		},
		never: append([]string{"github.com/nats-io/nats-server", "go.opentelemetry.io/otel/sdk"}, wire...),
	},
	"kiln/events/client": {
		imports: []string{"kiln/events", "kiln/events/natsbus", "github.com/nats-io/nats.go", "go.opentelemetry.io/otel"},
		never:   append([]string{"github.com/nats-io/nats-server", "go.opentelemetry.io/otel/sdk"}, wire...),
	},
	"kiln/builder": {
		imports: []string{"kiln/builder/dockerfile", "kiln/builder/lazyregexp", "kiln/builder/nuclio", "github.com/cenkalti/backoff/v6"},
		never:   append([]string{"github.com/google"}, domain...),
	},
	"kiln/builder/lazyregexp":        {never: append([]string{"kiln/builder"}, domain...)},
	"kiln/builder/dockerfile":        {imports: []string{"kiln/builder/lazyregexp"}, never: domain},
	"kiln/builder/nuclio":            {imports: []string{"kiln/builder/lazyregexp"}, never: domain},
	"kiln/builder/nuclio/nucliotest": {never: append([]string{"kiln/builder"}, domain...)},
	"kiln/builder/nuclio/dashboard":  {imports: []string{"kiln/builder", "kiln/builder/nuclio"}, never: domain},
	"kiln/builder/secrets":           {imports: []string{"kiln/builder"}, never: domain},
	"kiln/builder/function": {
		imports: []string{
			"kiln/builder", "kiln/builder/dockerfile", "kiln/builder/kaniko", "kiln/builder/lazyregexp", "kiln/builder/nuclio",
			"github.com/google/go-containerregistry/pkg/name",
		},
		never: append([]string{"github.com/google/go-containerregistry/pkg/v1"}, domain...),
	},
	"kiln/builder/registry": {
		imports: []string{
			"kiln/builder", "github.com/google/go-containerregistry", "github.com/docker/cli/cli/config",
			// The identity that a worker has at a cloud.
			"github.com/aws/aws-sdk-go-v2", "github.com/aws/smithy-go", "github.com/Azure/azure-sdk-for-go/sdk", "golang.org/x/oauth2",
		},
		never: domain,
	},
	"kiln/builder/kaniko": {
		imports: []string{"kiln/builder", "kiln/builder/lazyregexp", "github.com/google/go-containerregistry/pkg/name", "github.com/kballard/go-shellquote"},
		never:   append([]string{"github.com/google/go-containerregistry/pkg/v1"}, domain...),
	},
	"kiln/builder/source/archive": {
		imports: []string{"kiln/builder", "kiln/builder/lazyregexp", "github.com/moby/patternmatcher"},
		never:   domain,
	},
	"kiln/builder/source/archivetest": {imports: []string{"github.com/google/go-cmp/cmp"}, never: append([]string{"kiln/builder"}, domain...)},
	"kiln/builder/source": {
		imports: []string{
			"kiln/builder", "kiln/builder/source/archive", "golang.org/x/sys",
			// Git.
			"github.com/go-git/go-git/v6", "github.com/go-git/go-billy/v6/osfs", "github.com/kevinburke/ssh_config", "golang.org/x/crypto/ssh",
			// Object stores.
			"github.com/minio/minio-go/v7", "github.com/Azure/azure-sdk-for-go/sdk", "golang.org/x/oauth2",
		},
		never: append([]string{"kiln/builder/sandbox", "kiln/builder/kube", "cloud.google.com/go/storage", "google.golang.org/grpc"}, domain...),
	},
	"kiln/builder/run": {
		imports: []string{"kiln/builder", "kiln/builder/dockerfile", "kiln/builder/run/launcher"},
		never:   append([]string{"github.com/google"}, domain...),
	},
	"kiln/builder/run/launcher":      {never: []string{"kiln/builder", "kiln/events", "kiln/worker", "kiln/cmd", "github.com", "golang.org"}},
	"kiln/builder/run/runtest/steps": {never: []string{"kiln/builder", "kiln/events", "kiln/worker", "kiln/cmd", "github.com", "golang.org"}},
	"kiln/builder/run/runtest/probe": {imports: []string{"kiln/builder/run/runtest/steps"}, never: domain},
	"kiln/builder/run/runtest": {
		imports: []string{"kiln/builder", "kiln/builder/run", "github.com/google/go-containerregistry", "github.com/google/go-cmp"},
		never:   append([]string{"kiln/builder/kube", "kiln/builder/sandbox"}, domain...),
	},
	"kiln/builder/sandbox": {
		imports: []string{
			"kiln/builder", "kiln/builder/kaniko", "github.com/opencontainers/runtime-spec", "golang.org/x/sys",
			// Images of runs.
			"kiln/builder/run", "github.com/google/go-containerregistry/pkg/v1", "github.com/cyphar/filepath-securejoin", "github.com/moby/sys/user",
		},
		never: append([]string{"kiln/builder/kube", "kiln/builder/registry", "github.com/docker/cli", "github.com/aws", "github.com/Azure"}, domain...),
	},
	"kiln/builder/kube": {
		imports: []string{
			"kiln/builder", "kiln/builder/kaniko", "kiln/builder/run", "k8s.io/api", "k8s.io/apimachinery", "k8s.io/client-go",
			"github.com/cenkalti/backoff/v6", "go.opentelemetry.io/otel/propagation",
		},
		never: append([]string{"kiln/builder/sandbox", "k8s.io/client-go/kubernetes/fake", "go.opentelemetry.io/otel/sdk"}, withoutKubernetes(domain)...),
	},
	"kiln/builder/enginetest": {
		imports: []string{"kiln/builder", "github.com/google/go-containerregistry", "github.com/google/go-cmp"},
		never:   append([]string{"kiln/builder/kube", "kiln/builder/sandbox"}, domain...),
	},
	"kiln/builder/rehearsal": {
		imports: []string{"kiln/builder", "kiln/builder/run", "github.com/google/go-containerregistry"},
		never:   append([]string{"kiln/builder/kube", "kiln/builder/sandbox"}, domain...),
	},
	"kiln/builder/kube/kubetest": {
		imports: []string{"k8s.io", "sigs.k8s.io/yaml", "github.com/google/go-containerregistry"},
		never:   []string{"kiln/builder", "kiln/events", "kiln/worker", "kiln/cmd"},
	},
	"kiln/worker": {
		imports: []string{
			"kiln/builder", "kiln/builder/function", "kiln/builder/nuclio", "kiln/events", "kiln/worker/backlog", "github.com/cenkalti/backoff/v6",
			"github.com/prometheus/client_golang", "github.com/rs/zerolog", "go.opentelemetry.io/otel",
		},
		never: []string{
			"github.com/nats-io", "k8s.io", "kiln/events/natsbus", "kiln/builder/kube", "kiln/builder/registry",
			"kiln/builder/sandbox", "kiln/builder/nuclio/dashboard", "kiln/builder/secrets", "kiln/cmd", "github.com/alecthomas/kong",
		},
	},
	"kiln/worker/backlog": {imports: []string{"kiln/events"}, never: append([]string{"github.com/nats-io", "github.com/prometheus"}, judged...)},
	"kiln/worker/history": {imports: []string{"kiln/events"}, never: append([]string{"github.com/nats-io", "github.com/prometheus"}, judged...)},
	"kiln/worker/trigger": {
		imports: []string{
			"kiln/builder", "kiln/builder/function", "kiln/builder/run", "kiln/events", "kiln/worker", "kiln/worker/backlog",
			"github.com/prometheus/client_golang", "github.com/rs/zerolog",
		},
		never: []string{
			"github.com/nats-io", "k8s.io", "kiln/events/natsbus", "kiln/builder/kube", "kiln/builder/registry",
			"kiln/builder/sandbox", "kiln/builder/nuclio/dashboard", "kiln/builder/secrets", "kiln/cmd", "github.com/alecthomas/kong",
		},
	},
	"kiln/examples/react": {imports: []string{"github.com/nats-io/nats.go"}, never: append([]string{"kiln/events", "kiln/schemas"}, wire...)},
	"kiln/deploy/nats/natstest": {
		imports: []string{"kiln/events/natsbus", "github.com/nats-io/nats-server/v2", "golang.org/x/crypto/bcrypt"},
		never:   []string{"kiln/builder", "kiln/worker", "kiln/cmd"},
	},
	"kiln/deploy/demo": {
		imports: []string{"github.com/google/go-containerregistry", "github.com/opencontainers/runtime-spec", "sigs.k8s.io/yaml"},
		never:   []string{"kiln/builder", "kiln/events", "kiln/worker", "kiln/cmd"},
	},
	"kiln/deploy/image": {
		imports: []string{"github.com/google/go-containerregistry", "golang.org/x/crypto/x509roots"},
		never:   []string{"kiln/builder", "kiln/events", "kiln/worker", "kiln/cmd"},
	},
	"kiln/cmd/kiln-init": {imports: []string{"kiln/builder/run/launcher"}, never: []string{"kiln/events", "kiln/worker", "kiln/schemas", "github.com", "golang.org"}},

	"kiln/cmd/cli":  {imports: ofClient, never: append([]string{"kiln/cmd"}, heavy...)},
	"kiln/cmd/kiln": {imports: append([]string{"kiln/cmd/cli"}, ofClient...), never: append([]string{"kiln/cmd/kilnd"}, heavy...)},
	"kiln/cmd/kilnd": {
		imports: []string{"kiln", "github.com", "go.opentelemetry.io", "golang.org/x", "sigs.k8s.io/yaml", "k8s.io/api/core/v1", "k8s.io/klog/v2"},
		never:   []string{"kiln/cmd/kiln", "k8s.io/client-go/kubernetes/fake", "github.com/stretchr/testify"},
	},
}

var (
	// wire packages know neither the domain nor what executes builds.
	wire = []string{"kiln/builder", "kiln/worker", "kiln/cmd", "k8s.io", "github.com/alecthomas/kong"}
	// ofClient is what the client is made of.
	ofClient = []string{
		"kiln/builder", "kiln/events", "github.com/alecthomas/kong", "github.com/nats-io/nats.go", "github.com/rs/zerolog",
		"golang.org/x/term", "sigs.k8s.io/yaml",
	}
	// heavy packages make a program start slowly: the client has none of them.
	heavy = []string{
		"kiln/builder/kube", "kiln/builder/registry", "kiln/builder/sandbox", "kiln/worker", "k8s.io",
		"github.com/aws", "github.com/Azure", "github.com/minio", "golang.org/x/oauth2", "google.golang.org", "github.com/distribution/distribution",
		"github.com/nats-io/nats-server", "github.com/go-git", "github.com/google/go-containerregistry/pkg/v1", "github.com/docker/cli",
		"github.com/prometheus", "go.opentelemetry.io/otel/sdk",
	}
	// judged packages are the pure parts of the worker.
	judged = []string{"kiln/builder", "kiln/cmd", "k8s.io", "github.com/alecthomas/kong", "github.com/google", "github.com/rs/zerolog"}
	// domain packages know neither the queue nor who calls them.
	domain = []string{
		"kiln/events", "kiln/schemas", "kiln/worker", "kiln/cmd", "github.com/nats-io", "k8s.io",
		"github.com/alecthomas/kong", "github.com/prometheus/client_golang",
	}
)

// withoutKubernetes is for the one package that may know it.
func withoutKubernetes(never []string) []string {
	return slices.DeleteFunc(slices.Clone(never), func(path string) bool { return path == "k8s.io" })
}

// pkg is what `go list` says about a package, without its tests.
type pkg struct {
	path          string
	imports, deps []string
}

// layerFaults says which imports the layers forbid, one sentence each.
func layerFaults(packages []pkg) []string {
	var faults []string
	for _, p := range packages {
		l, ok := layers[p.path]
		if !ok {
			faults = append(faults, p.path+" has no line in layers")
			continue
		}
		for _, i := range p.imports {
			if foreign(i) && !matches(i, l.imports) {
				faults = append(faults, fmt.Sprintf("%s imports %s", p.path, i))
			}
		}
		for _, d := range p.deps {
			if matches(d, l.never) {
				faults = append(faults, fmt.Sprintf("%s reaches %s", p.path, d))
			}
		}
	}
	return faults
}

// foreign reports whether path is outside the standard library.
func foreign(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return first == "kiln" || strings.Contains(first, ".")
}

func matches(path string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return path == p || strings.HasPrefix(path, p+"/") })
}

func TestPackagesImportOnlyWhatTheirLayerMay(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-f", `{{.ImportPath}}|{{join .Imports " "}}|{{join .Deps " "}}`, "kiln/...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []pkg
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSpace(line), "|")
		packages = append(packages, pkg{path: f[0], imports: strings.Fields(f[1]), deps: strings.Fields(f[2])})
	}
	if len(packages) < 8 {
		t.Fatalf("go list named %d packages, want all of the module", len(packages))
	}
	for _, fault := range layerFaults(packages) {
		t.Error(fault)
	}
}

func TestForbiddenImportsAreFound(t *testing.T) {
	t.Parallel()
	got := layerFaults([]pkg{
		{path: "kiln/events", imports: []string{"kiln/schemas", "time"}, deps: []string{"kiln/schemas", "time"}},
		{path: "kiln/events", imports: []string{"kiln/builder"}, deps: []string{"kiln/builder"}},
		{path: "kiln/builder/sandbox", imports: []string{"kiln/builder"}, deps: []string{"k8s.io/client-go"}},
		{path: "kiln/worker", deps: []string{"github.com/nats-io/nats.go"}},
		{path: "kiln/util"},
	})
	want := []string{
		"kiln/events imports kiln/builder",
		"kiln/events reaches kiln/builder",
		"kiln/builder/sandbox reaches k8s.io/client-go",
		"kiln/worker reaches github.com/nats-io/nats.go",
		"kiln/util has no line in layers",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
}
