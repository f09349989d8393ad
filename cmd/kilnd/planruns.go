package main

import (
	"cmp"
	"strings"
	"time"

	"kiln/builder"
	"kiln/builder/function"
	runs "kiln/builder/run"
	"kiln/worker/trigger"
)

// planRuns makes plans of runs by MLRun's rules. Images are pulled with the credentials
// that builds push them with.
func planRuns(cfg runs.Config, rules function.Config) trigger.Resolve {
	return func(j trigger.Job) (runs.Plan, error) {
		asked := j.Request.Run
		timeout, err := timeLimit(asked.Timeout)
		if err != nil {
			return runs.Plan{}, err
		}
		r := runs.Request{
			Name: asked.Name, Project: asked.Project, Handler: asked.Handler, Parameters: asked.Parameters, Inputs: asked.Inputs,
			Outputs: asked.Outputs, ArtifactPath: asked.ArtifactPath, Env: asked.Env, Labels: asked.Labels, Args: asked.Args,
			Workdir: asked.Workdir, Timeout: timeout, Resources: runs.Resources{Memory: asked.Resources.Memory, CPU: asked.Resources.CPU},
		}
		if n := asked.Resources.GPUs; n > 0 {
			r.Resources.GPUs = map[string]int64{gpuResource: n}
		}
		plan, err := runs.Resolve(runs.Input{
			RunID: j.RunID, Attempt: j.Attempt, Function: j.Request.Function, Run: r, Image: j.Image, Secrets: j.Secrets, Config: cfg,
		})
		if host, _, _ := strings.Cut(rules.Registry, "/"); host != "" && strings.HasPrefix(j.Image, host+"/") {
			plan.RegistrySecret = cmp.Or(plan.RegistrySecret, rules.RegistrySecret)
		}
		return plan, err
	}
}

// gpuResource is what a number of GPUs is a number of, as for MLRun's with_limits.
const gpuResource = "nvidia.com/gpu"

func timeLimit(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, builder.Errorf(builder.KindInvalidRequest, "planning the run", "run.timeout %q is not a duration such as 30m", text)
	}
	return d, nil
}
