package kaniko

import (
	"fmt"
	"slices"
	"strings"

	"kiln/builder"
	"kiln/builder/lazyregexp"
)

// Paths inside the container that the executor runs in.
const (
	// Executor is the program. The executor takes the folder that it is in for its
	// own: it never gets into an image.
	Executor = "/kaniko/executor"
	// Dockerfile holds Plan.Dockerfile.
	Dockerfile = "/kaniko/build/Dockerfile"
	// Context is the folder with the files of Plan.Context.
	Context = "/kaniko/build/context"
)

// secretEnv is prefixed to the index of a secret to name its variable.
const secretEnv = "KILN_SECRET_"

// Options are what Args needs to know beside the plan.
type Options struct {
	// DigestFile is where the executor writes the digest of the image.
	DigestFile string
	// Registries says how registries are reached, see Reach. Those of the plan that are
	// not among them are anonymous, and may be spoken to by plain HTTP on loopback.
	Registries []builder.Access
	// Dir is the folder where the container finds Files.
	Dir string
	// CredentialHelpers that the executor may use beside its docker config: env,
	// google, ecr, acr, gitlab. Empty: none. With helpers, build arguments named like
	// the variables that they read (AWS_…) change who pushes.
	CredentialHelpers []string
	// SecretDir is a folder with a file for each of Plan.Secrets, named by its index.
	// Empty: the executor reads them from its environment, see Env.
	SecretDir string
}

// Args returns the arguments of the executor, without its path.
func Args(plan builder.Plan, opts Options) []string {
	args := []string{
		"--dockerfile=" + Dockerfile,
		"--context=" + Context,
		"--destination=" + plan.Destination,
		"--digest-file=" + opts.DigestFile,
		"--custom-platform=" + plan.Platform,
		"--log-format=json",
		"--force",
		"--push-retry=3",
		"--image-fs-extract-retry=3",
	}
	if len(opts.CredentialHelpers) == 0 {
		args = append(args, "--credential-helpers=")
	}
	for _, helper := range opts.CredentialHelpers {
		args = append(args, "--credential-helpers="+helper)
	}
	args = append(args, opts.flags(plan)...)
	for _, arg := range plan.BuildArgs {
		args = append(args, "--build-arg="+arg.Name)
	}
	for i, secret := range plan.Secrets {
		from := fmt.Sprintf("type=env,env=%s%d", secretEnv, i)
		if opts.SecretDir != "" {
			from = fmt.Sprintf("type=file,src=%s/%d", opts.SecretDir, i)
		}
		args = append(args, "--secret=id="+secret.ID+","+from)
	}
	if plan.Verbose {
		args = append(args, "--verbosity=debug")
	}
	return append(args, plan.Executor.Flags...)
}

// Settings returns the part of the executor's environment that is the same for every
// plan, as "NAME=value".
func Settings() []string {
	return []string{
		"HOME=/root",
		"USER=root",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"FF_KANIKO_RUN_MOUNT_BIND=true",
		"FF_KANIKO_RUN_MOUNT_SECRET=true",
	}
}

// Env returns the whole environment of the executor, as "NAME=value". None of it
// reaches a command or the image, except build arguments that the Dockerfile
// declares and secrets that a RUN mounts.
func Env(plan builder.Plan) []string {
	env := slices.Grow(Settings(), len(plan.BuildArgs)+len(plan.Secrets))
	for _, arg := range plan.BuildArgs {
		env = append(env, arg.Name+"="+arg.Value)
	}
	for i, secret := range plan.Secrets {
		env = append(env, fmt.Sprintf("%s%d=%s", secretEnv, i, secret.Value))
	}
	return env
}

var (
	argName  = lazyregexp.New(`^[A-Za-z_][A-Za-z0-9_]*$`)
	secretID = lazyregexp.New(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)
	// reserved are the variables that change what the executor itself does: those
	// of the Go runtime and its network code, of the dynamic linker, of docker's
	// configuration and of Kaniko. Proxy variables are not among them: registries
	// and commands are reached through the same proxies, as in MLRun.
	reserved = lazyregexp.New(`^(PATH|HOME|USER|LOGNAME|SHELL|PWD|TMPDIR|container` +
		`|GODEBUG|GOGC|GOMEMLIMIT|GOMAXPROCS|GOTRACEBACK|GOCOVERDIR|GORACE|GOROOT|LOCALDOMAIN|RES_OPTIONS` +
		`|BENCHMARK_FILE|BUILDER_OUTPUT|SNAPSHOT_TIMEOUT_DURATION|UPSTREAM_CLIENT_TYPE|REGISTRY_AUTH_FILE` +
		`|(LD|DOCKER|KANIKO|FF|XDG|KILN|SSL_CERT)_.*)$`)
	// stage finds FROM with its image and the name that it gives it; part finds from
	// what else COPY, ADD or a mount take files.
	stage = lazyregexp.New(`(?mi)^[ \t]*FROM[ \t]+(?:--\S+[ \t]+)*(\S+)(?:[ \t]+AS[ \t]+(\S+))?`)
	part  = lazyregexp.New(`[-,=]from=([^\s,]+)`)
)

// maxValue is the longest value of one variable: Linux allows 128 KiB for a string
// of the environment, name included.
const maxValue = 100 << 10

// maxEnv is the longest environment: Linux gives arguments and environment a quarter
// of the stack, at least 128 KiB and usually 2 MiB.
const maxEnv = 1 << 20

// Check refuses what the executor cannot be given safely, as an error of
// KindInvalidRequest that names the build argument or secret.
func Check(plan builder.Plan) error {
	for _, arg := range plan.BuildArgs {
		switch {
		case !argName.MatchString(arg.Name):
			return builder.Errorf(builder.KindInvalidRequest, "reading build arguments", "%q is not a name: use letters, digits and _", arg.Name)
		case reserved.MatchString(arg.Name):
			return builder.Errorf(builder.KindInvalidRequest, "reading build arguments", "%s is reserved: it would change the build tool itself", arg.Name)
		}
		if err := checkValue("build argument "+arg.Name, arg.Value); err != nil {
			return err
		}
	}
	for _, secret := range plan.Secrets {
		if !secretID.MatchString(secret.ID) {
			return builder.Errorf(builder.KindInvalidRequest, "reading secrets", "%q is not an id: use letters, digits, _ . and -", secret.ID)
		}
		if err := checkValue("secret "+secret.ID, secret.Value); err != nil {
			return err
		}
	}
	if size := len(strings.Join(Env(plan), "\x00")); size > maxEnv {
		return builder.Errorf(builder.KindInvalidRequest, "reading the plan", "build arguments and secrets take %d KiB, more than %d", size>>10, maxEnv>>10)
	}
	return nil
}

func checkValue(what, value string) error {
	switch {
	case strings.ContainsRune(value, 0):
		return builder.Errorf(builder.KindInvalidRequest, "reading the plan", "%s holds a NUL byte", what)
	case len(value) > maxValue:
		return builder.Errorf(builder.KindInvalidRequest, "reading the plan", "%s is longer than %d KiB", what, maxValue>>10)
	}
	return nil
}
