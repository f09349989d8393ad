package run

import (
	"encoding/json"
	"maps"
	"path"
	"slices"
	"strings"

	"kiln/builder/run/launcher"
)

// Where files of a run without mlrun are.
const (
	functionDir   = launcher.Out + "/function"
	codeFile      = functionDir + "/main.py"
	shellFile     = functionDir + "/codefile.sh"
	bootstrapFile = functionDir + "/bootstrap.py"
	taskFile      = functionDir + "/task.json"
)

// passMode is the mode of functions whose command is taken as it is.
const passMode = "pass"

// commands says what may be run, in the order of preference: mlrun, which reads code and
// run from its environment; the function's command; its inline code, or a module of the
// image, by a bootstrap of Kiln's; the image's own entrypoint.
func (r *resolver) commands(p *Plan) {
	words := strings.Fields(r.fn.Spec.Command)
	if len(words) > 0 && strings.HasPrefix(words[0], "-") {
		r.add("spec.command", "%.80q begins with -", words[0])
	}
	r.checkMode()
	nothing := len(words) == 0 && r.fn.code == nil && r.handler() == ""
	if nothing && len(r.args()) > 0 {
		r.add("spec.args", "there is neither a command nor code that would take them")
	}
	if nothing {
		p.Commands = []Command{{}}
		return
	}
	if r.fn.code != nil || r.fn.Spec.Mode != passMode {
		p.Commands = append(p.Commands, r.mlrun(p))
	}
	script := len(words) > 0 && path.Ext(words[0]) == ".py"
	switch {
	case r.fn.code != nil && r.fn.Spec.Mode == passMode:
		r.passCode(p, words)
	case r.fn.code != nil && (len(words) == 0 || script || words[0] == "*"):
		// As with mlrun, the command of inline code stands for the code, and brings
		// arguments.
		r.python(p, codeFile, append(slices.Clone(words[min(1, len(words)):]), r.args()...))
	case script && r.fn.Spec.Mode != passMode:
		r.python(p, words[0], append(slices.Clone(words[1:]), r.args()...))
	case len(words) > 0:
		args := r.formatted(append(words, r.args()...))
		p.Commands = append(p.Commands, Command{Needs: args[0], Args: args})
	default:
		r.python(p, "", r.args())
	}
}

func (r *resolver) checkMode() {
	if r.fn.Spec.Mode == passMode && r.handler() != "" {
		r.add("spec.mode", "pass takes the command as it is, so that no handler can be called")
	}
}

// mlrun returns the command of MLRun's own runtime. Code that does not fit a variable is
// given as the file that mlrun would write it to.
func (r *resolver) mlrun(p *Plan) Command {
	c := Command{Needs: "mlrun", Args: []string{"mlrun", "run", "--name", r.name(), "--from-env"}}
	if h := r.handler(); h != "" {
		c.Args = append(c.Args, "--handler", h)
	}
	if m := r.fn.Spec.Mode; m != "" {
		c.Args = append(c.Args, "--mode", m)
	}
	spec, url := r.fn.Spec, r.fn.Spec.Command
	if r.fn.code != nil {
		encoded := strings.Join(strings.Fields(spec.Build.Code), "")
		if len(varCode)+len(encoded)+1 < maxString {
			c.Env = append(c.Env, Var{varCode, encoded})
			if name := path.Base(spec.Build.OriginFilename); namePattern.MatchString(name) {
				c.Args = append(c.Args, "--origin-file", name)
			}
		} else {
			r.write(p, codeFile, r.fn.code)
			_, rest, _ := strings.Cut(strings.TrimSpace(url), " ")
			url = strings.TrimSpace(codeFile + " " + rest)
		}
	}
	args := r.args()
	if url == "" && len(args) > 0 {
		// mlrun's own sign for "the code, with arguments".
		url = "*"
	}
	if url != "" {
		c.Args = append(c.Args, url)
	}
	c.Args = append(c.Args, args...)
	return c
}

// passCode is MLRun's rule for code that a command of the function's takes.
func (r *resolver) passCode(p *Plan, words []string) {
	const sign = "{codefile}"
	switch {
	case slices.ContainsFunc(words, func(w string) bool { return strings.Contains(w, sign) }):
		for i, w := range words {
			words[i] = strings.ReplaceAll(w, sign, codeFile)
		}
		r.write(p, codeFile, r.fn.code)
	case len(words) > 0 && path.Ext(words[0]) == ".sh" || path.Ext(r.fn.Spec.Build.OriginFilename) == ".sh":
		words = append([]string{"bash", shellFile}, words[min(1, len(words)):]...)
		r.write(p, shellFile, r.fn.code)
	default:
		r.add("spec.command", "in mode pass it must say by {codefile} where the code's file goes")
		return
	}
	args := r.formatted(append(words, r.args()...))
	p.Commands = append(p.Commands, Command{Needs: args[0], Args: args})
}

// python runs a script (codeFile: the inline code), or calls the handler in it; without
// a script the handler names its module.
func (r *resolver) python(p *Plan, script string, args []string) {
	args = r.formatted(args)
	if script == codeFile {
		r.write(p, codeFile, r.fn.code)
	}
	call := append([]string{script}, args...)
	if r.handler() != "" {
		call = []string{bootstrapFile, taskFile}
		r.write(p, bootstrapFile, []byte(bootstrap))
		r.write(p, taskFile, r.task(script, args))
	}
	var env []Var
	if !r.sets("PYTHONUNBUFFERED") {
		// Output that stays in a buffer comes too late, or never.
		env = []Var{{"PYTHONUNBUFFERED", "1"}}
	}
	for _, program := range []string{"python3", "python"} {
		p.Commands = append(p.Commands, Command{Needs: program, Args: append([]string{program}, call...), Env: env})
	}
}

// sets reports whether function or run set a variable.
func (r *resolver) sets(name string) bool {
	_, ok := r.in.Run.Env[name]
	return ok || slices.ContainsFunc(r.fn.Spec.Env, func(v functionVar) bool { return v.Name == name })
}

// write adds a file, once.
func (r *resolver) write(p *Plan, name string, data []byte) {
	if !slices.ContainsFunc(p.Files, func(f File) bool { return f.Path == name }) {
		p.Files = append(p.Files, File{Path: name, Data: data, Mode: 0o644})
	}
}

// task is what the bootstrap reads.
type task struct {
	File         string                     `json:"file"`
	Handler      string                     `json:"handler"`
	Args         []string                   `json:"args"`
	Parameters   map[string]json.RawMessage `json:"parameters"`
	Inputs       map[string]string          `json:"inputs"`
	Name         string                     `json:"name"`
	Project      string                     `json:"project"`
	UID          string                     `json:"uid"`
	ArtifactPath string                     `json:"artifact_path"`
	Labels       map[string]string          `json:"labels"`
	MaxResults   int                        `json:"max_results"`
}

func (r *resolver) task(script string, args []string) []byte {
	raw, err := json.Marshal(task{
		File: script, Handler: r.handler(), Args: append([]string{}, args...), Parameters: r.params,
		Inputs: orEmpty(r.in.Run.Inputs), Name: r.name(), Project: r.project(), UID: r.in.RunID,
		ArtifactPath: first(r.in.Run.ArtifactPath, r.in.Config.ArtifactPath), Labels: orEmpty(r.in.Run.Labels),
		MaxResults: MaxResults,
	})
	if err != nil {
		r.add("run", "%s", err)
	}
	return raw
}

// formatted puts parameters in the place of {name}, as MLRun does for commands and
// arguments. Braces around anything else stay.
func (r *resolver) formatted(words []string) []string {
	pairs := make([]string, 0, 2*len(r.params))
	for _, name := range slices.Sorted(maps.Keys(r.params)) {
		raw := r.params[name]
		var text string
		if json.Unmarshal(raw, &text) != nil {
			text = string(compact(raw))
		}
		pairs = append(pairs, "{"+name+"}", text)
	}
	replacer := strings.NewReplacer(pairs...)
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = replacer.Replace(w)
	}
	return out
}
