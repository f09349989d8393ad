package function_test

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"kiln/builder"
	"kiln/builder/dockerfile"
)

// layers is what a Dockerfile means: the declared arguments, and what is done in order.
type layers struct {
	args  []string
	steps []string
	// secrets are seen by every RUN, by the wiring of their program.
	secrets []string
	pipCA   bool
}

const (
	stepRequirements = "install the requirements"
	mlrunPipCA       = "pip-ca-certificates.crt"
)

var ownership = regexp.MustCompile(`^chown -R (\d+:\d+) (\S+)$`)

// read takes text apart as Kaniko does, with the same parser.
func readLayers(text string) (layers, error) {
	parsed, err := parser.Parse(strings.NewReader(text))
	if err != nil {
		return layers{}, err
	}
	stages, _, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		return layers{}, err
	}
	// Stages before the last one only unpack the source.
	var l layers
	for _, command := range stages[len(stages)-1].Commands {
		l.add(command)
	}
	slices.Sort(l.args)
	l.args = slices.Compact(l.args)
	return l, nil
}

func (l *layers) add(command instructions.Command) {
	switch c := command.(type) {
	case *instructions.ArgCommand:
		for _, arg := range c.Args {
			l.arg(arg)
		}
	case *instructions.AddCommand:
		l.steps = append(l.steps, sourceStep(c.DestPath, c.Chown))
	case *instructions.CopyCommand:
		if slices.Contains(c.SourcePaths, "./"+mlrunPipCA) {
			l.pipCA = true
			return
		}
		l.steps = append(l.steps, sourceStep(c.DestPath, c.Chown))
	case *instructions.EnvCommand:
		for _, pair := range c.Env {
			l.steps = append(l.steps, "env "+pair.Key+"="+strings.TrimRight(strings.Trim(pair.Value, `"`), "/"))
		}
	case *instructions.RunCommand:
		l.run(c)
	default:
		l.steps = append(l.steps, fmt.Sprint(command))
	}
}

func (l *layers) arg(arg instructions.KeyValuePairOptional) {
	switch {
	case arg.Value == nil:
		l.args = append(l.args, arg.Key)
	case arg.Key == "PIP_CERT":
		l.pipCA = true
	case *arg.Value == "$"+arg.Key:
		l.secrets = append(l.secrets, arg.Key)
	default:
		l.args = append(l.args, arg.Key+"="+strings.Trim(*arg.Value, `"`))
	}
}

func (l *layers) run(c *instructions.RunCommand) {
	text := strings.Join(c.CmdLine, " ")
	for _, file := range c.Files {
		text = strings.TrimSuffix(file.Data, "\n")
	}
	text = strings.ReplaceAll(text, "\\\n", "")
	switch m := ownership.FindStringSubmatch(text); {
	case strings.Contains(text, "Installing /empty/requirements.txt..."):
	case text == "python -m pip install -r /empty/requirements.txt" || text == "python -m pip install -r /kiln/"+dockerfile.RequirementsFile:
		l.steps = append(l.steps, stepRequirements)
	case m != nil && len(l.steps) > 0 && l.steps[len(l.steps)-1] == sourceStep(m[2], ""):
		l.steps[len(l.steps)-1] = sourceStep(m[2], m[1])
	default:
		l.steps = append(l.steps, "run "+text)
	}
}

func sourceStep(target, owner string) string {
	step := "put the source into " + strings.TrimRight(target, "/")
	if owner != "" {
		step += " for " + owner
	}
	return step
}

// compareDockerfile compares what MLRun's Dockerfile means with what the plan's does.
func compareDockerfile(lines []string, plan builder.Plan) []difference {
	want, err := readLayers(strings.Join(lines, "\n") + "\n")
	if err != nil {
		return []difference{{"dockerfile.syntax", strings.Join(lines, " | "), "a Dockerfile that can be read; MLRun's cannot: " + err.Error()}}
	}
	got, err := readLayers(plan.Dockerfile)
	if err != nil {
		return []difference{{"dockerfile", "a Dockerfile", err.Error()}}
	}
	var d []difference
	note := func(field string, want, got []string) {
		if !slices.Equal(want, got) {
			d = append(d, difference{field, strings.Join(want, " | "), strings.Join(got, " | ")})
		}
	}
	note("dockerfile.args", want.args, got.args)
	for _, name := range want.secrets {
		seen := "no secret mount"
		if slices.ContainsFunc(plan.Secrets, func(s builder.Secret) bool { return s.ID == name }) {
			seen = "secret mount"
		}
		d = append(d, difference{"dockerfile.secret", "ARG " + name + "=$" + name, seen})
	}
	mounted := slices.ContainsFunc(plan.Context, func(f builder.File) bool { return f.Name == dockerfile.PipCAFile })
	if want.pipCA || mounted {
		d = append(d, difference{"dockerfile.pip_ca", fmt.Sprintf("copied into the image: %t", want.pipCA), fmt.Sprintf("mounted: %t", mounted)})
	}
	if sameSteps(want.steps, got.steps) {
		if !slices.Equal(want.steps, got.steps) {
			d = append(d, difference{"dockerfile.order", strings.Join(want.steps, " | "), strings.Join(got.steps, " | ")})
		}
		return d
	}
	note("dockerfile.steps", want.steps, got.steps)
	return d
}

// sameSteps reports whether two lists of steps are the same but for the place of the
// source.
func sameSteps(a, b []string) bool {
	apart := func(steps []string) (source, rest []string) {
		for _, step := range steps {
			if strings.HasPrefix(step, "put the source") || strings.HasPrefix(step, "env PYTHONPATH=") {
				source = append(source, step)
			} else {
				rest = append(rest, step)
			}
		}
		return source, rest
	}
	sourceA, restA := apart(a)
	sourceB, restB := apart(b)
	return slices.Equal(sourceA, sourceB) && slices.Equal(restA, restB)
}
