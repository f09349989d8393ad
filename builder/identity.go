package builder

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
)

// identify fills in the plan's Identity and, when the base is pinned, its BuildID:
// the SHA-256 over every field, name and value each preceded by its length, so that
// no two different lists of fields have the same bytes. Fields are: the version of
// this scheme, the digest of the base, the platform, the executor with its flags,
// the Dockerfile, every file of the context with its mode, the version of the source,
// every build argument and the version of every secret.
//
// What only says where the image goes, who asked for it or how long it may take is
// not part of it, nor are the values of secrets.
func (p *Plan) identify() {
	base := p.Base.Digest
	if p.Base.Ref == Scratch {
		base = Scratch
	}
	fields := make([]Field, 0, 6+len(p.Executor.Flags)+len(p.Context)+len(p.BuildArgs)+len(p.Secrets))
	fields = append(fields,
		Field{"kiln.identity", "v1"},
		Field{"base", base},
		Field{"platform", p.Platform},
		Field{"executor", p.Executor.Name},
		Field{"executor.version", p.Executor.Version},
	)
	for _, flag := range p.Executor.Flags {
		fields = append(fields, Field{"executor.flag", flag})
	}
	fields = append(fields, Field{"dockerfile", hash(p.Dockerfile)})
	for _, f := range slices.SortedFunc(slices.Values(p.Context), func(a, b File) int { return cmp.Compare(a.Name, b.Name) }) {
		fields = append(fields, Field{"context:" + f.Name, fmt.Sprintf("%04o %s", f.Mode, hash(string(f.Data)))})
	}
	if s := p.Source; s != nil {
		fields = append(fields, Field{"source", s.Version})
	}
	shown := slices.Clone(fields)
	for _, a := range p.BuildArgs {
		f := Field{"build-arg:" + a.Name, hash(a.Value)}
		fields = append(fields, f)
		if a.Secret {
			f.Value = f.Value[:shownDigest] + "… (secret)"
		}
		shown = append(shown, f)
	}
	for _, s := range p.Secrets {
		f := Field{"secret:" + s.ID, s.Version}
		fields, shown = append(fields, f), append(shown, f)
	}
	p.Identity, p.BuildID = shown, ""
	if base != "" && (p.Source == nil || p.Source.Version != "") {
		p.BuildID = digestOf(fields)
	}
}

// shownDigest is how much of a secret argument's hash people see: enough to tell
// that it changed, too little to guess a value by.
const shownDigest = len("sha256:") + 4

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
