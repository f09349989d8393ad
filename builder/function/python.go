package function

import (
	"strings"

	"kiln/builder"
	"kiln/builder/lazyregexp"
)

var (
	// The two are MLRun's own, and take "pip install --upgrade pipenv" for a pip upgrade
	// as MLRun does.
	pipUpgrade   = lazyregexp.New(`pip install --upgrade .*pip`)
	mlrunInstall = lazyregexp.New(`pip install .*mlrun`)
	mlrunWord    = lazyregexp.New(`^(?:\S*/)?mlrun(?:\.git)?(?:[\[=<>!~@#;].*)?$`)
	// mlrunTag is a version that pip can find: a release or a pre-release without
	// hyphen. Images for other Pythons or for GPUs have a suffix that is no part of it.
	mlrunTag = lazyregexp.New(`^((?:0|[1-9]\d*)\.(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)(?:-[0-9A-Za-z.]+?)??)(?:-gpu|-py\d+)?$`)
	bareWord = lazyregexp.New(`^[A-Za-z0-9.=~+-]*$`)
)

// additions are what a build puts on top of the base.
type additions struct {
	commands, requirements []string
	extra                  string
	source                 *builder.Source
	// mlrun says that mlrun is wanted on a base that lacks it.
	mlrun bool
	// user counts are of what the function itself lists.
	userCommands, userRequirements int
}

func (a additions) empty() bool {
	return len(a.commands) == 0 && len(a.requirements) == 0 && a.extra == "" && a.source == nil && !a.mlrun
}

// additions returns new lists: those of the function, with pip and mlrun put in
// as MLRun does.
func (r resolver) additions(base baseImage, specifier string) additions {
	a := additions{
		commands:         append([]string(nil), r.fn.commands...),
		source:           r.source(),
		mlrun:            r.wantsMLRun(base),
		userCommands:     len(r.fn.commands),
		userRequirements: len(r.fn.requirements),
	}
	if strings.TrimSpace(r.fn.extra) != "" {
		a.extra = r.fn.extra
	}
	if line := r.mlrunRequirement(base, a.mlrun, specifier); line != "" {
		a.requirements = append(a.requirements, line)
	}
	a.requirements = append(a.requirements, r.fn.requirements...)
	if a.mlrun && !anyMatches(r.fn.commands, pipUpgrade) {
		a.commands = append(a.commands, "python -m pip install --upgrade "+quote("pip"+r.config.PipVersion))
	}
	r.place(a.source, a)
	return a
}

// wantsMLRun reports whether mlrun is to be installed as such. A base of MLRun's
// has it already, even when it is asked for.
func (r resolver) wantsMLRun(base baseImage) bool {
	switch {
	case base.hasMLRun():
		return false
	case r.in.WithMLRun != nil:
		return *r.in.WithMLRun
	case r.fn.withMLRun != nil:
		return *r.fn.withMLRun
	case base.ref == scratch || r.config.WithMLRun == WithMLRunNever:
		return false
	case r.config.WithMLRun == WithMLRunAlways:
		return true
	default:
		// MLRun's client names the configured Spark image as the base.
		named := r.fn.base != "" || base.from == sparkFrom
		return r.fn.kind == KindSpark || named && !base.fromMLRun()
	}
}

// mlrunRequirement returns the line for mlrun, or "". On a base of MLRun's it keeps
// pip from changing mlrun for the sake of other requirements. What the function
// says itself, by command or requirement, goes first; a specifier of the request
// is put in even so, unless it is there already.
func (r resolver) mlrunRequirement(base baseImage, wanted bool, specifier string) string {
	if !wanted && (!base.hasMLRun() || len(r.fn.requirements) == 0) {
		return ""
	}
	if wanted && anyMatches(r.fn.commands, mlrunInstall) || r.listsMLRun(specifier) {
		return ""
	}
	tag := mlrunTag.FindStringSubmatch(base.tag)
	switch {
	case specifier != "":
		return specifier
	case !wanted && tag == nil:
		if base.tag != "" || base.digest {
			r.notes.add("pip may change mlrun for the sake of other requirements, since the tag of %s is no released version", base.text)
		}
		return ""
	case r.config.MLRunVersionSpecifier != "":
		return r.config.MLRunVersionSpecifier
	case wanted:
		return r.defaultSpecifier(r.mlrunVersion())
	default:
		return r.defaultSpecifier(tag[1])
	}
}

// listsMLRun reports whether the function's requirements say which mlrun it is to be,
// in its own words or in those of the request.
func (r resolver) listsMLRun(specifier string) bool {
	for _, line := range r.fn.requirements {
		first, _, _ := strings.Cut(strings.ToLower(line), " ")
		rest, named := strings.CutPrefix(first, strings.ToLower(r.config.MLRunPackage))
		named = named && (rest == "" || strings.ContainsAny(rest[:1], "[=<>!~@;"))
		if line == specifier || specifier == "" && (named || mlrunWord.MatchString(first)) {
			return true
		}
	}
	return false
}

// anyMatches reports whether a line of a command matches; a backslash joins lines.
func anyMatches(commands []string, pattern *lazyregexp.Regexp) bool {
	for _, command := range commands {
		command = strings.ReplaceAll(strings.ReplaceAll(command, "\r\n", "\n"), "\\\n", " ")
		if pattern.MatchString(command) {
			return true
		}
	}
	return false
}

// quote makes one word of a version specifier for the shell.
func quote(word string) string {
	if bareWord.MatchString(word) {
		return word
	}
	return "'" + word + "'"
}
