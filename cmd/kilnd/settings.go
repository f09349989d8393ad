package main

import (
	"fmt"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"kiln/builder"
	"kiln/cmd/cli"
)

// topologyFlags say what is provisioned.
type topologyFlags struct {
	Replicas        int           `default:"1" help:"Replicas of streams and ledger: 1, 3 or 5."`
	MaxAge          time.Duration `default:"720h" help:"How long events and ledger records are kept."`
	LogMaxAge       time.Duration `default:"168h" help:"How long build logs are kept."`
	ContextMaxAge   time.Duration `default:"168h" help:"How long uploaded sources are kept."`
	AckWait         time.Duration `default:"30s" help:"Silence after which a worker's request goes to another worker."`
	MaxAckPending   int           `default:"256" help:"Requests that all workers together handle at a time."`
	DuplicateWindow time.Duration `default:"5m" help:"How long a repeated Nats-Msg-Id is dropped."`
}

// registryFlags say where images go and how registries are reached.
type registryFlags struct {
	URL          string   `help:"Registry, with an optional repository path, of images that name none: registry.example.com/team." placeholder:"HOST[/PATH]"`
	Insecure     []string `help:"Hosts that are spoken to by plain HTTP; loopback always is." placeholder:"HOST"`
	Secret       string   `help:"Credentials of builds for this registry whose function names none (spec.build.secret)." placeholder:"NAME"`
	DockerConfig string   `type:"existingfile" help:"Docker config.json with credentials, for Kiln and for builds. Defaults to Docker's own." placeholder:"FILE"`

	SecretsDir string        `type:"existingdir" help:"Folder of credentials that functions name (spec.build.secret) and that go first: NAME/.dockerconfigjson, NAME/config.json, NAME/credentials (AWS, for ECR) or NAME.json." placeholder:"DIR"`
	Cloud      []string      `help:"Clouds whose registries are used by the worker's own identity there when nothing else is configured for them: ecr, gar, acr." placeholder:"NAME"`
	CA         string        `type:"existingfile" help:"CA certificates that every registry is checked with, beside the system's." placeholder:"FILE"`
	Hosts      registryHosts `help:"TLS and mirrors of single registries, as YAML: {HOST: {ca: FILE, cert: FILE, key: FILE, insecure: BOOL, skip_tls_verify: BOOL, mirrors: [HOST/PATH]}}." placeholder:"YAML"`
}

// pipFlags say where Python packages come from.
type pipFlags struct {
	IndexURL       string   `help:"Package index in place of PyPI; may hold credentials." placeholder:"URL"`
	ExtraIndexURLs []string `name:"extra-index-urls" help:"Further package indexes." placeholder:"URL"`
	TrustedHosts   []string `help:"Index hosts that are used without valid HTTPS." placeholder:"HOST"`
	CA             string   `type:"existingfile" help:"CA certificates that indexes are checked with." placeholder:"FILE"`
}

// pip reads the files that are named.
func (f pipFlags) pip() (builder.Pip, error) {
	p := builder.Pip{IndexURL: f.IndexURL, ExtraIndexURLs: f.ExtraIndexURLs, TrustedHosts: f.TrustedHosts}
	if f.CA != "" {
		raw, err := os.ReadFile(f.CA)
		if err != nil {
			return p, cli.Usage(fmt.Errorf("--pip-ca: %w", err))
		}
		p.CA = string(raw)
	}
	return p, nil
}

// mlrunFlags are the rules for function objects.
type mlrunFlags struct {
	ServerVersion          string            `help:"Version of MLRun: the tag of its images that are named without one, and the mlrun that is installed. A request's client version goes first." placeholder:"VERSION"`
	VersionSpecifier       string            `help:"Requirement for mlrun when a request has none." placeholder:"TEXT"`
	WithMLRun              string            `name:"with-mlrun" default:"auto" enum:"auto,always,never" help:"Whether images get mlrun when nobody says so: auto is the rule of MLRun's client."`
	Package                string            `default:"mlrun" help:"Python package of MLRun."`
	PipVersion             string            `default:"~=23.0" help:"Version of pip in images that get mlrun."`
	DefaultBaseImage       string            `default:"mlrun/mlrun" help:"Base of functions that have none."`
	ImageByKind            map[string]string `help:"Image of a kind whose function names none." placeholder:"KIND=IMAGE"`
	TargetNameTemplate     string            `default:"func-{project}-{name}" help:"Image name of functions that name none, and what names below the registry's repository begin with."`
	ImagesTag              string            `help:"Tag of MLRun's images that are named without one, in place of the version." placeholder:"TAG"`
	ImagesRegistry         string            `help:"Registry in front of MLRun's images that mlrun.images_to_enrich_registry matches." placeholder:"HOST[/PATH]"`
	VendorImagesRegistry   string            `help:"Registry in front of other images that it matches." placeholder:"HOST[/PATH]"`
	ImagesToEnrichRegistry []string          `default:"^mlrun/*,python:3.9" help:"Regular expressions for the beginning of an image."`
	SourceOwner            string            `help:"Owner of the source in images. Defaults to root." placeholder:"UID:GID"`
	NodeSelector           map[string]string `help:"Node selector of builds, below those of project and function." placeholder:"LABEL=VALUE"`
	ServiceAccount         string            `help:"Service account of builds whose project and function name none." placeholder:"NAME"`
	ProjectsFile           string            `type:"existingfile" help:"YAML file with the defaults of projects: a map of their names to keys of MLRun's project spec." placeholder:"FILE"`
	MaxTimeout             time.Duration     `default:"4h" help:"Longest timeout that a request may ask for."`
	BuildArgs              map[string]string `help:"Build arguments of every build, with values that are no secret." placeholder:"NAME=VALUE"`
	SparkAppImage          string            `help:"Image, without a tag, that functions of kinds spark and remote-spark start from; remote-spark takes shell where it says spark-app." placeholder:"IMAGE"`
	SparkAppImageTag       string            `help:"Tag of that image." placeholder:"TAG"`
}

// nuclioFlags are about functions whose images Nuclio builds.
type nuclioFlags struct {
	DashboardURL    string `name:"dashboard-url" help:"Dashboard of Nuclio, on which functions of kinds nuclio, remote and serving are deployed; may hold credentials. Without it they are left to whoever deploys them." placeholder:"URL"`
	Namespace       string `help:"Namespace of the functions. Defaults to the dashboard's."`
	Runtime         string `default:"python:3.9" help:"Runtime of functions that name none."`
	Version         string `help:"Version of Nuclio. Before 1.6 it has no newer runtime than python:3.6."`
	ImagePullSecret string `help:"Kubernetes secret for pulling images, for functions that name none." placeholder:"NAME"`
	BuildSecret     string `help:"Kubernetes secret for pushing images, for functions that name none. Defaults to registry.secret." placeholder:"NAME"`
	V3IOAPI         string `name:"v3io-api" env:"KILN_NUCLIO_V3IO_API" help:"Address for v3io sources without a host." placeholder:"URL"`
}

// secretsFlags say where the secrets of projects are. Variables named
// KILN_PROJECT_SECRET__PROJECT__NAME hold more of them.
type secretsFlags struct {
	Dir string `type:"existingdir" help:"Folder with a folder for each project and a file for each of its secrets, as Kubernetes mounts them. KILN_PROJECT_SECRET__PROJECT__NAME in the environment is one more." placeholder:"DIR"`
}

// sandboxFlags say how builds run on this machine.
type sandboxFlags struct {
	Executor    string  `help:"The Kaniko executor. Defaults to kaniko-executor beside kiln, on PATH or in ./bin." placeholder:"FILE"`
	Runtime     string  `help:"OCI runtime. Defaults to the first of runc and crun on PATH." placeholder:"NAME"`
	StateDir    string  `help:"Where build roots live. Defaults to a folder of the data directory." placeholder:"DIR"`
	Root        string  `default:"auto" enum:"auto,tmpfs,disk" help:"Where the build root is: auto takes tmpfs when the unpacked base fits the budget."`
	TmpfsBudget size    `default:"4GiB" help:"Memory for build roots of all builds together."`
	Memory      size    `default:"4GiB" help:"Memory limit of one build."`
	CPUs        float64 `name:"cpus" default:"0" help:"CPU limit of one build in cores; 0 is none."`
	PIDs        int64   `name:"pids" default:"4096" help:"Process limit of one build."`
	Disk        size    `default:"20GiB" help:"Limit of one build root."`
}

// workerFlags say how a worker works.
type workerFlags struct {
	Name        string        `help:"Name in events and leases. Defaults to host name and process id."`
	Slots       int           `default:"2" help:"Builds at the same time."`
	Lease       time.Duration `default:"30s" help:"How long a build stays claimed without a sign of life; at most the consumer's ack wait."`
	SoftStop    time.Duration `default:"30s" help:"How long running builds may go on after a stop signal."`
	MaxAttempts int           `default:"10" help:"Tries when the fault is not the request's."`
	Timeout     time.Duration `default:"30m" help:"Time limit of a build that names none."`
	Platform    string        `help:"Platform of images. Defaults to linux and this machine's architecture." placeholder:"OS/ARCH"`
}

// size is a number of bytes, written as 512MiB, 4GiB or plain bytes.
type size int64

// unit is a suffix of a size.
type unit struct {
	suffix string
	factor float64
}

// units from the longest suffix to the shortest.
func units() []unit {
	return []unit{
		{"KiB", 1 << 10},
		{"MiB", 1 << 20},
		{"GiB", 1 << 30},
		{"TiB", 1 << 40},
		{"KB", 1e3},
		{"MB", 1e6},
		{"GB", 1e9},
		{"TB", 1e12},
		{"B", 1},
		{"", 1},
	}
}

func parseSize(text string) (size, error) {
	for _, u := range units() {
		number, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if err != nil || !(v >= 0 && v*u.factor <= 1<<60) {
			break
		}
		return size(v * u.factor), nil
	}
	return 0, fmt.Errorf("%q is not a size such as 512MiB or 4GiB", text)
}

func sizeMapper() kong.MapperFunc {
	return func(ctx *kong.DecodeContext, target reflect.Value) error {
		var text string
		if err := ctx.Scan.PopValueInto("size", &text); err != nil {
			return err
		}
		v, err := parseSize(text)
		if err != nil {
			return err
		}
		target.SetInt(int64(v))
		return nil
	}
}
