package main

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"time"
)

// wheel is a pure Python distribution of one module, in one version.
type wheel struct {
	name, version, summary, source string
}

// demoWheels are the packages that stand in for PyPI's where PyPI does not answer.
func demoWheels() []wheel {
	versions := []string{"1.0", "1.1"}
	all := make([]wheel, 0, 2*len(versions))
	for _, version := range versions {
		all = append(all,
			wheel{
				name: "kiln-demo-features", version: version, summary: "Feature scaling of Kiln's demo",
				source: "def scale(values):\n    low, high = min(values), max(values)\n    return [(v - low) / ((high - low) or 1) for v in values]\n",
			},
			wheel{
				name: "kiln-demo-model", version: version, summary: "A straight line, the model of Kiln's demo",
				source: "def fit(xs, ys):\n    n, sx, sy = len(xs), sum(xs), sum(ys)\n" +
					"    slope = (n * sum(x * y for x, y in zip(xs, ys)) - sx * sy) / (n * sum(x * x for x in xs) - sx * sx)\n" +
					"    return slope, (sy - slope * sx) / n\n",
			})
	}
	return all
}

// module is the name that Python imports.
func (w wheel) module() string { return strings.ReplaceAll(w.name, "-", "_") }

// filename is as the binary distribution format has it: name, version and tags.
func (w wheel) filename() string {
	return w.module() + "-" + w.version + "-py3-none-any.whl"
}

// bytes returns the wheel: a zip archive of the module and its metadata, where
// RECORD holds size and SHA-256 of every other file. The same wheel always gives the
// same bytes.
func (w wheel) bytes() ([]byte, error) {
	info := w.module() + "-" + w.version + ".dist-info/"
	files := []struct{ name, text string }{
		{w.module() + ".py", fmt.Sprintf("\"\"\"%s.\"\"\"\n\n__version__ = %q\n\n\n%s", w.summary, w.version, w.source)},
		{info + "METADATA", fmt.Sprintf("Metadata-Version: 2.1\nName: %s\nVersion: %s\nSummary: %s\n", w.name, w.version, w.summary)},
		{info + "WHEEL", "Wheel-Version: 1.0\nGenerator: kiln-demo\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
	}
	var record strings.Builder
	var buf bytes.Buffer
	zw := zip.NewWriter(&buf)
	add := func(name, text string) error {
		f, err := zw.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Deflate, Modified: time.Unix(315532800, 0).UTC()})
		if err == nil {
			_, err = f.Write([]byte(text))
		}
		return err
	}
	for _, f := range files {
		sum := sha256.Sum256([]byte(f.text))
		fmt.Fprintf(&record, "%s,sha256=%s,%d\n", f.name, base64.RawURLEncoding.EncodeToString(sum[:]), len(f.text))
		if err := add(f.name, f.text); err != nil {
			return nil, fmt.Errorf("write %s: %w", f.name, err)
		}
	}
	fmt.Fprintf(&record, "%sRECORD,,\n", info)
	if err := add(info+"RECORD", record.String()); err != nil {
		return nil, fmt.Errorf("write RECORD: %w", err)
	}
	if err := zw.Close(); err != nil {
		return nil, fmt.Errorf("write %s: %w", w.filename(), err)
	}
	return buf.Bytes(), nil
}
