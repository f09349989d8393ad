package run

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"kiln/builder"
)

// quantity is an amount as Kubernetes writes it: 2, "500m", "4Gi".
type quantity float64

// UnmarshalJSON implements json.Unmarshaler.
func (q *quantity) UnmarshalJSON(raw []byte) error {
	text := string(raw)
	if len(raw) > 0 && raw[0] == '"' {
		if err := json.Unmarshal(raw, &text); err != nil {
			return err
		}
	}
	if text == "null" || text == "" {
		return nil
	}
	value, err := parseQuantity(text)
	*q = quantity(value)
	return err
}

func parseQuantity(text string) (float64, error) {
	end := strings.LastIndexAny(text, "0123456789.") + 1
	number, suffix := text[:end], text[end:]
	factor, known := map[string]float64{
		"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
		"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50,
	}[suffix]
	value, err := strconv.ParseFloat(number, 64)
	if !known || err != nil || value < 0 || value*factor > 1<<60 || math.IsNaN(value) {
		return 0, fmt.Errorf("%.40q is not a quantity such as 500m or 4Gi", text)
	}
	return value * factor, nil
}

// limits returns those of the run, else of the function, within the operator's bounds.
func (r *resolver) limits() (builder.Limits, map[string]int64) {
	asked, most := r.in.Run.Resources, r.in.Config.Max
	l := builder.Limits{Memory: asked.Memory, CPU: asked.CPU, PIDs: asked.PIDs, Timeout: r.in.Run.Timeout}
	gpus := maps.Clone(asked.GPUs)
	own := r.fn.Spec.Resources.Limits
	for _, name := range slices.Sorted(maps.Keys(own)) {
		switch value := float64(own[name]); {
		case name == "memory" && l.Memory == 0:
			l.Memory = int64(value)
		case name == "cpu" && l.CPU == 0:
			l.CPU = value
		case name == "ephemeral-storage":
			l.Disk = int64(value)
		case strings.Contains(name, "/") && asked.GPUs == nil && value > 0:
			if gpus == nil {
				gpus = map[string]int64{}
			}
			gpus[name] = int64(value)
		}
	}
	if l.Timeout == 0 {
		l.Timeout = r.in.Config.Timeout
	}
	check(r, "run.timeout", l.Timeout, most.Timeout, time.Duration.String)
	check(r, "run.resources.memory", l.Memory, most.Memory, bytesText)
	check(r, "run.resources.disk", l.Disk, most.Disk, bytesText)
	check(r, "run.resources.cpu", l.CPU, most.CPU, func(v float64) string { return fmt.Sprint(v) })
	check(r, "run.resources.pids", l.PIDs, most.PIDs, func(v int64) string { return strconv.FormatInt(v, 10) })
	for _, name := range slices.Sorted(maps.Keys(gpus)) {
		if err := checkGPU(name, gpus[name]); err != nil {
			r.add("run.resources.gpus", "%s", err)
		}
	}
	return l, gpus
}

func checkGPU(name string, n int64) error {
	domain, rest, ok := strings.Cut(name, "/")
	switch {
	case n < 0 || n > 1024:
		return fmt.Errorf("%d of %.80q", n, name)
	case !ok || !namePattern.MatchString(domain) || !namePattern.MatchString(rest):
		return fmt.Errorf("%.80q is not the name of a resource such as nvidia.com/gpu", name)
	}
	return nil
}

func bytesText(n int64) string { return fmt.Sprintf("%d MiB", n>>20) }

func check[T int64 | float64 | time.Duration](r *resolver, path string, value, most T, text func(T) string) {
	switch {
	case value < 0:
		r.add(path, "is negative")
	case most > 0 && value > most:
		r.add(path, "%s is more than the limit of %s", text(value), text(most))
	}
}
