package launcher

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// results reads what the process left, and says why it is not passed on.
func (s Spec) results() (found json.RawMessage, note string) {
	// A pipe in place of the file must not hold up the end.
	f, err := os.OpenFile(s.Results, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ""
	}
	var raw []byte
	if err == nil {
		defer f.Close()
		raw, err = io.ReadAll(io.LimitReader(f, int64(s.MaxResults)+1))
	}
	if err != nil {
		return nil, fmt.Sprintf("the results cannot be read: %v", err)
	}
	return CheckResults(raw, s.MaxResults)
}

// CheckResults returns what a process left as results, without white space, or a note
// that says why it does not count. Nothing at all is no results and no fault.
func CheckResults(raw []byte, most int) (results json.RawMessage, note string) {
	if len(raw) > most {
		return nil, fmt.Sprintf("the results are longer than %d bytes", most)
	}
	if len(bytes.TrimSpace(raw)) == 0 {
		return nil, ""
	}
	var compact bytes.Buffer
	if json.Compact(&compact, raw) != nil || compact.Bytes()[0] != '{' {
		return nil, "the results are no JSON object"
	}
	return compact.Bytes(), ""
}

// write writes the report in one go: the file may be one that cannot be replaced.
func (s Spec) write(r Report) {
	if err := os.WriteFile(s.Report, r.Encode(s.MaxReport), 0o644); err != nil { //nolint:gosec // the runner names it
		_, _ = fmt.Fprintln(os.Stderr, "kiln-init: write how the process ended:", err)
	}
}

// Encode returns the report as JSON of at most so many bytes, without the results when
// they do not fit. 0 is no limit.
func (r Report) Encode(most int) []byte {
	raw := encode(r)
	if most > 0 && len(raw) > most {
		if r.Results != nil {
			r.Note = fmt.Sprintf("the results of %d bytes are longer than what can be passed on", len(r.Results))
			r.Results = nil
		}
		r.Failure = r.Failure[:min(len(r.Failure), most/8)]
		raw = encode(r)
	}
	return raw
}

func encode(r Report) []byte {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(r); err != nil {
		return nil
	}
	return out.Bytes()
}
