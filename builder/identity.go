package builder

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"
)

// identify fills in the plan's Identity and, when the base is pinned, its BuildID:
// the SHA-256 over every field, name and value each preceded by its length, so that
// no two different lists of fields have the same bytes. What only says where the
// image goes or how long it may take is not part of it.
func (p *Plan) identify() {
	base := p.Base.Digest
	if p.Base.Ref == Scratch {
		base = Scratch
	}
	fields := []Field{
		{"kiln.identity", "v1"},
		{"base", base},
		{"platform", p.Platform},
		{"executor", p.Executor.Name + " " + p.Executor.Version},
		{"executor.flags", strings.Join(p.Executor.Flags, " ")},
		{"dockerfile", hash(p.Dockerfile)},
	}
	for _, f := range slices.SortedFunc(slices.Values(p.Context), func(a, b File) int { return cmp.Compare(a.Name, b.Name) }) {
		fields = append(fields, Field{"context:" + f.Name, fmt.Sprintf("%o %s", f.Mode, hash(string(f.Data)))})
	}
	for _, a := range p.BuildArgs {
		fields = append(fields, Field{"build-arg:" + a.Name, hash(a.Value)})
	}
	for _, s := range p.Secrets {
		fields = append(fields, Field{"secret:" + s.ID, hash(s.Version)})
	}
	p.Identity = fields
	if base == "" {
		p.BuildID = ""
		return
	}
	p.BuildID = digestOf(fields)
}

func digestOf(fields []Field) string {
	h := sha256.New()
	write := func(s string) {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(s)))
		h.Write(size[:])
		_, _ = io.WriteString(h, s)
	}
	for _, f := range fields {
		write(f.Name)
		write(f.Value)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "sha256:" + hex.EncodeToString(sum[:])
}
