package run

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"kiln/builder"
)

// function is what of an MLRun function object shapes its runs. Unknown keys are
// passed over.
type function struct {
	Kind     string `json:"kind"`
	Metadata struct {
		Name    string `json:"name"`
		Project string `json:"project"`
		Tag     string `json:"tag"`
		Hash    string `json:"hash"`
	} `json:"metadata"`
	Spec functionSpec `json:"spec"`

	// code is the inline code; nil: none.
	code   []byte
	faults []error
}

type functionSpec struct {
	Command        string        `json:"command"`
	Args           []string      `json:"args"`
	Mode           string        `json:"mode"`
	DefaultHandler string        `json:"default_handler"`
	Workdir        string        `json:"workdir"`
	PythonPath     string        `json:"pythonpath"`
	Env            []functionVar `json:"env"`
	CloneTargetDir string        `json:"clone_target_dir"`
	Resources      struct {
		Limits   map[string]quantity `json:"limits"`
		Requests map[string]quantity `json:"requests"`
	} `json:"resources"`
	NodeName      string            `json:"node_name"`
	NodeSelector  map[string]string `json:"node_selector"`
	Affinity      json.RawMessage   `json:"affinity"`
	Tolerations   json.RawMessage   `json:"tolerations"`
	PriorityClass string            `json:"priority_class_name"`
	Account       string            `json:"service_account"`
	Volumes       json.RawMessage   `json:"volumes"`
	VolumeMounts  json.RawMessage   `json:"volume_mounts"`
	Build         struct {
		Code            string            `json:"functionSourceCode"`
		OriginFilename  string            `json:"origin_filename"`
		Source          string            `json:"source"`
		LoadSourceOnRun bool              `json:"load_source_on_run"`
		TargetDir       string            `json:"source_code_target_dir"`
		BuilderEnv      map[string]string `json:"builder_env"`
		Secret          string            `json:"secret"`
	} `json:"build"`
}

// functionVar is an entry of spec.env, in Kubernetes' terms.
type functionVar struct {
	Name      string          `json:"name"`
	Value     *string         `json:"value"`
	ValueFrom json.RawMessage `json:"valueFrom"`
}

func readFunction(raw json.RawMessage) function {
	var f function
	if err := json.Unmarshal(raw, &f); err != nil {
		err = fmt.Errorf("function: is not an object with kind, metadata and spec: %w", err)
		if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && wrong.Field != "" {
			err = fmt.Errorf("%s: %s is no %s", wrong.Field, wrong.Value, wrong.Type)
		}
		f.faults = append(f.faults, err)
	}
	b := f.Spec.Build
	code := strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return -1
		}
		return r
	}, b.Code)
	if code != "" {
		var err error
		if f.code, err = base64.StdEncoding.DecodeString(code); err != nil {
			f.faults = append(f.faults, fmt.Errorf("spec.build.functionSourceCode: is not valid base64: %w", err))
		}
	}
	for path, set := range map[string]json.RawMessage{"spec.volumes": f.Spec.Volumes, "spec.volume_mounts": f.Spec.VolumeMounts} {
		if !empty(set) {
			f.faults = append(f.faults, fmt.Errorf("%s: runs have no volumes; read data by its address, or put it into the image", path))
		}
	}
	return f
}

// name is MLRun's rule for names of functions, as far as a name is one.
func (f function) name() string {
	return strings.ToLower(strings.ReplaceAll(strings.Join(strings.Fields(f.Metadata.Name), "-"), "_", "-"))
}

// uri is how MLRun's run object names its function.
func (f function) uri(project string) string {
	uri := project + "/" + f.name()
	switch {
	case f.Metadata.Hash != "":
		return uri + "@" + f.Metadata.Hash
	case f.Metadata.Tag != "":
		return uri + ":" + f.Metadata.Tag
	}
	return uri
}

func (s functionSpec) scheduling() builder.Scheduling {
	sched := builder.Scheduling{
		NodeName: s.NodeName, NodeSelector: s.NodeSelector, PriorityClass: s.PriorityClass, ServiceAccount: s.Account,
	}
	if !empty(s.Affinity) {
		sched.Affinity = compact(s.Affinity)
	}
	if !empty(s.Tolerations) {
		sched.Tolerations = compact(s.Tolerations)
	}
	return sched
}

func compact(raw json.RawMessage) json.RawMessage {
	var out bytes.Buffer
	if json.Compact(&out, raw) != nil {
		return raw
	}
	return out.Bytes()
}

// empty reports whether a value says nothing.
func empty(raw json.RawMessage) bool {
	switch string(compact(raw)) {
	case "", "null", "{}", "[]", `""`, "false":
		return true
	}
	return false
}
