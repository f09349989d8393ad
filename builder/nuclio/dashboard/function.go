package dashboard

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"kiln/builder"
	"kiln/builder/nuclio"
)

const (
	// annotation lists the requests that a function was deployed for, the last one first.
	annotation  = "kiln.dev/requests"
	maxRequests = 20
)

// mark stands for a request in an annotation, whatever its id is made of.
func mark(requestID string) string {
	sum := sha256.Sum256([]byte(requestID))
	return hex.EncodeToString(sum[:16])
}

// function is what is read of a function that Nuclio has.
type function struct {
	Metadata struct {
		Name                string
		Labels, Annotations map[string]string
	}
	Spec   struct{ Image string }
	Status struct {
		State, Message, ContainerImage string
		Logs                           []map[string]any
	}
}

func (f *function) project() string { return f.Metadata.Labels[nuclio.LabelProject] }

func (f *function) requests() []string { return strings.Fields(f.Metadata.Annotations[annotation]) }

// provisioning reports whether Nuclio is at work on the function. A function that was
// imported, or was never deployed, is at rest.
func (f *function) provisioning() bool {
	switch f.Status.State {
	case "", "ready", "error", "unhealthy", "scaledToZero", "imported":
		return false
	default:
		return true
	}
}

// status says how far the deployment is.
func (f *function) status() (nuclio.Status, error) {
	s := nuclio.Status{
		State: f.Status.State,
		Image: cmp.Or(f.Status.ContainerImage, f.Spec.Image),
		Log:   f.log(),
	}
	switch s.State {
	case "ready", "scaledToZero":
		s.Done = true
		return s, nil
	case "error", "unhealthy":
		return s, &builder.Error{Kind: builder.KindCommandFailed, Err: f.failure()}
	default:
		return s, nil
	}
}

// failure is Nuclio's reason, or the last error of the log.
func (f *function) failure() error {
	if text := strings.TrimSpace(f.Status.Message); text != "" {
		return fmt.Errorf("the function is in state %s: %s", f.Status.State, text)
	}
	for _, entry := range slices.Backward(f.Status.Logs) {
		if entry["level"] == "error" {
			return fmt.Errorf("the function is in state %s: %s", f.Status.State, line(entry))
		}
	}
	return errors.New("the function is in state " + f.Status.State + ", and Nuclio does not say why")
}

// log returns the lines of Nuclio's log, which it keeps with the function.
func (f *function) log() []string {
	var lines []string
	for _, entry := range f.Status.Logs {
		text := line(entry)
		for _, key := range []string{"err", "errVerbose"} {
			if detail, _ := entry[key].(string); detail != "" && !strings.Contains(text, detail) {
				text += "\n" + detail
			}
		}
		for part := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
			lines = append(lines, part)
		}
	}
	return lines
}

// line is one entry: "(level) message".
func line(entry map[string]any) string {
	level, _ := entry["level"].(string)
	text, _ := entry["message"].(string)
	return fmt.Sprintf("(%s) %s", cmp.Or(level, "info"), text)
}
