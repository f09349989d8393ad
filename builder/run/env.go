package run

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"kiln/builder/run/launcher"
)

// Variables of MLRun.
const (
	varCode    = "MLRUN_EXEC_CODE"
	varConfig  = "MLRUN_EXEC_CONFIG"
	varProject = "MLRUN_DEFAULT_PROJECT"
	varDB      = "MLRUN_DBPATH"
	// secretPrefix begins the names under which MLRun's get_secret finds secrets.
	secretPrefix = "MLRUN_K8S_SECRET__" //nolint:gosec // a name, not a secret
)

// env returns the environment of the process in the order of names: MLRun's own
// variables, over them the function's, over them the run's. What tells the process
// which run it is, nobody changes.
func (r *resolver) env() []Var {
	env := map[string]string{varProject: r.project()}
	if r.in.Config.DBPath != "" {
		env[varDB] = r.in.Config.DBPath
	}
	if p := r.fn.Spec.PythonPath; p != "" {
		env["PYTHONPATH"] = p
	}
	for i, v := range r.fn.Spec.Env {
		path := fmt.Sprintf("spec.env[%d]", i)
		switch {
		case !varPattern.MatchString(v.Name):
			r.add(path, "%.80q %s", v.Name, notVar)
		case !empty(v.ValueFrom):
			r.add(path, "%s has its value from elsewhere in a cluster (valueFrom), which no run can read; give the value, or make it a secret of the project", v.Name)
		case v.Value != nil:
			env[v.Name] = *v.Value
		default:
			env[v.Name] = ""
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.in.Run.Env)) {
		if !varPattern.MatchString(name) {
			r.add("run.env", "%.80q %s", name, notVar)
		}
		env[name] = r.in.Run.Env[name]
	}
	env[varConfig] = string(r.execConfig())
	delete(env, varCode)
	delete(env, launcher.ResultsVar)
	return vars(env)
}

func vars(env map[string]string) []Var {
	all := make([]Var, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		all = append(all, Var{name, env[name]})
	}
	return all
}

// secrets returns the secrets of the project as variables, each under its own name
// unless the environment has that, and under the one that MLRun's get_secret knows.
// Names that begin with "mlrun." are MLRun's own; what cannot be a variable is left out,
// as builds do.
func (r *resolver) secrets(env []Var) []Var {
	all := make(map[string]string, 2*len(r.in.Secrets))
	for name, value := range r.in.Secrets {
		if strings.HasPrefix(name, "mlrun.") || !varPattern.MatchString(name) || name == varConfig || name == varCode {
			continue
		}
		if !slices.ContainsFunc(env, func(v Var) bool { return v.Name == name }) {
			all[name] = value
		}
		all[secretPrefix+strings.ToUpper(name)] = value
	}
	return vars(all)
}

// sourceEnv are the variables that credentials for the source are taken from.
func (r *resolver) sourceEnv() map[string]string {
	env := maps.Clone(r.in.Secrets)
	if env == nil {
		env = map[string]string{}
	}
	maps.Copy(env, r.fn.Spec.Build.BuilderEnv)
	return env
}

// runObject is MLRun's run object, as its to_dict writes it.
type runObject struct {
	Metadata runMetadata `json:"metadata"`
	Spec     runSpec     `json:"spec"`
	Status   struct{}    `json:"status"`
}

type runMetadata struct {
	Name      string            `json:"name"`
	UID       string            `json:"uid"`
	Project   string            `json:"project"`
	Labels    map[string]string `json:"labels"`
	Iteration int               `json:"iteration"`
}

type runSpec struct {
	Function   string                     `json:"function"`
	Parameters map[string]json.RawMessage `json:"parameters"`
	Inputs     map[string]string          `json:"inputs"`
	Outputs    []string                   `json:"outputs"`
	OutputPath string                     `json:"output_path,omitempty"`
	Handler    string                     `json:"handler,omitempty"`
}

// execConfig is the run as MLRun's own code reads it.
func (r *resolver) execConfig() []byte {
	labels := map[string]string{"kind": first(r.fn.Kind, "job")}
	maps.Copy(labels, r.in.Run.Labels)
	raw, err := json.Marshal(runObject{
		Metadata: runMetadata{Name: r.name(), UID: r.in.RunID, Project: r.project(), Labels: labels},
		Spec: runSpec{
			Function: r.fn.uri(r.project()), Parameters: r.params, Inputs: orEmpty(r.in.Run.Inputs),
			Outputs: append([]string{}, r.in.Run.Outputs...), OutputPath: first(r.in.Run.ArtifactPath, r.in.Config.ArtifactPath),
			Handler: r.handler(),
		},
	})
	if err != nil {
		r.add("run", "%s", err)
	}
	if len(varConfig)+len(raw)+1 >= maxString {
		r.add("run.parameters", "parameters and inputs take %d KiB, more than the %d that the process's environment holds; put them into a file and name it as an input",
			len(raw)>>10, maxString>>10)
		return nil
	}
	return raw
}

// parameters returns the valid ones.
func (r *resolver) parameters() map[string]json.RawMessage {
	all := make(map[string]json.RawMessage, len(r.in.Run.Parameters))
	for _, name := range slices.Sorted(maps.Keys(r.in.Run.Parameters)) {
		raw := r.in.Run.Parameters[name]
		if !json.Valid(raw) {
			r.add("run.parameters", "the value of %.80q is no JSON", name)
			continue
		}
		all[name] = raw
	}
	return all
}

func orEmpty(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

const notVar = "cannot be the name of an environment variable"
