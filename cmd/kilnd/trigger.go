package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"kiln/builder"
	runs "kiln/builder/run"
	"kiln/events/natsbus"
	"kiln/worker/trigger"
)

// triggerFlags say how runs are started.
type triggerFlags struct {
	Enabled     bool          `default:"true" negatable:"" help:"Start runs: take run.requested, wait for the image, run it."`
	Slots       int           `default:"4" help:"Runs in hand at the same time."`
	Timeout     time.Duration `default:"24h" help:"Time limit of a run that names none, from the start of its process."`
	MaxAttempts int           `default:"5" help:"Starts of a run when the fault is not the run's."`
	Place       string        `help:"Name of where processes are: triggers with the same place attach to each other's runs. Defaults to the host name." placeholder:"NAME"`
	Lost        time.Duration `default:"10m" help:"Silence of a trigger after which its runs have failed, while no trigger of its place goes on with them."`
}

// newTrigger wires a trigger; nil: this worker starts no runs.
func (s *service) newTrigger(ctx context.Context, f buildFlags, prefix string, bus *natsbus.Bus, reg prometheus.Registerer, log zerolog.Logger) (*trigger.Trigger, error) {
	if !f.Trigger.Enabled {
		return nil, nil
	}
	runner, err := s.newRunner(ctx, f)
	if err != nil {
		return nil, err
	}
	if runner == nil {
		log.Info().Msg("this worker has no runner: it builds, and leaves runs to others")
		return nil, nil
	}
	rules, err := f.function()
	if err != nil {
		return nil, err
	}
	deps, err := runPorts(ctx, bus)
	if err != nil {
		return nil, err
	}
	deps.Runner, deps.Resolve, deps.Secrets = runner, resolveRun, s.secrets
	deps.Pin = s.pin(cmp.Or(f.Worker.Platform, "linux/"+runtime.GOARCH))
	deps.Hidden = []*builder.Redactor{s.registry.Redactor(), builder.NewRedactor(s.hidden...)}
	deps.Metrics, deps.Log = trigger.NewMetrics(reg), log
	host, _ := os.Hostname()
	return trigger.New(trigger.Config{
		Name: f.name(), Place: cmp.Or(f.Trigger.Place, host), Scope: prefix, Slots: f.Trigger.Slots, Lease: f.Worker.Lease,
		SoftStop: f.Worker.SoftStop, Timeout: f.Trigger.Timeout, MaxAttempts: f.Trigger.MaxAttempts, Lost: f.Trigger.Lost,
		LogSubject: bus.Subjects().RunLog, Function: rules,
	}, deps)
}

// runPorts binds to what a trigger needs of the servers.
func runPorts(ctx context.Context, bus *natsbus.Bus) (trigger.Deps, error) {
	var errs [4]error
	var requests, cancels, builds *natsbus.Queue
	var known *natsbus.Runs
	requests, errs[0] = bound(ctx, bus.RunRequests)
	cancels, errs[1] = bound(ctx, bus.RunCancels)
	builds, errs[2] = bound(ctx, bus.RunBuilds)
	known, errs[3] = bound(ctx, bus.Runs)
	if err := errors.Join(errs[:]...); err != nil {
		return trigger.Deps{}, err
	}
	return trigger.Deps{
		Requests: queue{requests}, Cancels: queue{cancels}, Builds: queue{builds}, Publisher: bus, History: stream{bus},
		Runs: knownRuns{store{known}, known}, Logs: runLogs{bus.RunLogs()},
	}, nil
}

// pin finds out the digest of an image that is not built.
func (s *service) pin(platform string) trigger.Pin {
	return func(ctx context.Context, image, secret string) (string, error) {
		ref, err := name.ParseReference(image)
		if err != nil {
			return "", builder.Errorf(builder.KindInvalidRequest, "looking for the image", "%q is not an image: %w", image, err)
		}
		found, err := s.registry.With(secret).Resolve(ctx, image, platform)
		if err != nil {
			return "", err
		}
		return ref.Context().Name() + "@" + found.Digest, nil
	}
}

// newRunner makes what executes runs, as the engine executes builds; nil: there is none.
// This is the place where the runners of sandbox and kube are chosen.
func (s *service) newRunner(context.Context, buildFlags) (runs.Runner, error) { return wrapRunner(nil) }

// resolveRun makes the plan of a run: the function's command and environment. This is the
// place where MLRun's rules plug in.
func resolveRun(j trigger.Job) (runs.Plan, error) {
	var f struct {
		Spec struct {
			Command string   `json:"command"`
			Args    []string `json:"args"`
			Env     []struct {
				Name  string `json:"name"`
				Value string `json:"value"`
			} `json:"env"`
			Build struct {
				Secret string `json:"secret"`
			} `json:"build"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(j.Request.Function, &f); err != nil {
		return runs.Plan{}, builder.Errorf(builder.KindInvalidRequest, "planning the run", "function: %w", err)
	}
	env := map[string]string{}
	for _, v := range f.Spec.Env {
		env[v.Name] = v.Value
	}
	maps.Copy(env, j.Request.Run.Env)
	args := f.Spec.Args
	if len(j.Request.Run.Args) > 0 {
		args = j.Request.Run.Args
	}
	if f.Spec.Command != "" {
		args = append([]string{f.Spec.Command}, args...)
	}
	limits, err := limitsOf(j)
	plan := runs.Plan{
		Image: j.Image, RegistrySecret: f.Spec.Build.Secret, Commands: []runs.Command{{Args: args}}, Env: variables(env), Secrets: variables(j.Secrets),
		Workdir: j.Request.Run.Workdir, Limits: limits, Name: j.Request.Run.Name, Labels: j.Request.Run.Labels,
	}
	return plan, err
}

func limitsOf(j trigger.Job) (builder.Limits, error) {
	l := builder.Limits{Memory: j.Request.Run.Resources.Memory, CPU: j.Request.Run.Resources.CPU}
	if text := j.Request.Run.Timeout; text != "" {
		d, err := time.ParseDuration(text)
		if err != nil || d <= 0 {
			return l, builder.Errorf(builder.KindInvalidRequest, "planning the run", "run.timeout %q is not a duration such as 30m", text)
		}
		l.Timeout = d
	}
	return l, nil
}

// variables are in the order of their names.
func variables(values map[string]string) []runs.Var {
	all := make([]runs.Var, 0, len(values))
	for name, value := range values {
		all = append(all, runs.Var{Name: name, Value: value})
	}
	slices.SortFunc(all, func(a, b runs.Var) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// Run runs worker and trigger until ctx ends and both have stopped.
func (s *service) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	var errs [2]error
	parts.Go(func() { errs[0] = s.worker.Run(ctx) })
	if s.trigger != nil {
		parts.Go(func() { errs[1] = s.trigger.Run(ctx) })
	}
	parts.Wait()
	return errors.Join(errs[:]...)
}

// Interrupt stops both at once.
func (s *service) Interrupt() {
	s.worker.Interrupt()
	if s.trigger != nil {
		s.trigger.Interrupt()
	}
}
