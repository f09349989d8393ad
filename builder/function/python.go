package function

import (
	"regexp"
	"strings"
)

var (
	pipInstall = regexp.MustCompile(`\bpip[0-9.]*(?:[ \t]+-\S+)*[ \t]+install\b([^;&|\n]*)`)
	pipWord    = regexp.MustCompile(`^pip(?:[\[=<>!~@].*)?$`)
	mlrunWord  = regexp.MustCompile(`^(?:\S*/)?mlrun(?:\.git)?(?:[\[=<>!~@#;].*)?$`)
	// mlrunTag is a released version or a release candidate. Images for other
	// Pythons or for GPUs have a suffix that is no part of the version.
	mlrunTag = regexp.MustCompile(`^(\d+\.\d+\.\d+(?:-rc\d+)?)(?:-gpu|-py\d+)?$`)
	bareWord = regexp.MustCompile(`^[A-Za-z0-9.=~+-]*$`)
)

// additions are what a build puts on top of the base.
type additions struct {
	commands, requirements []string
	extra                  string
	// mlrun says that mlrun is wanted on a base that lacks it.
	mlrun bool
	// user counts are of what the function itself lists.
	userCommands, userRequirements int
}

func (a additions) empty() bool {
	return len(a.commands) == 0 && len(a.requirements) == 0 && a.extra == "" && !a.mlrun
}

// additions returns new lists: those of the function, with pip and mlrun put in
// as MLRun does.
func (r resolver) additions(base baseImage, specifier string) additions {
	a := additions{
		commands:         append([]string(nil), r.fn.commands...),
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
	if a.mlrun && !installs(r.fn.commands, pipWord) {
		a.commands = append(a.commands, "python -m pip install --upgrade "+quote("pip"+r.config.PipVersion))
	}
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
	case base.ref == scratch:
		return false
	default:
		return r.fn.kind == KindSpark || r.fn.base != "" && !base.fromMLRun()
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
	if wanted && installs(r.fn.commands, mlrunWord) {
		return ""
	}
	for _, line := range r.fn.requirements {
		first, _, _ := strings.Cut(line, " ")
		if line == specifier || specifier == "" && mlrunWord.MatchString(strings.ToLower(first)) {
			return ""
		}
	}
	switch tag := mlrunTag.FindStringSubmatch(base.tag); {
	case specifier != "":
		return specifier
	case r.config.MLRunVersionSpecifier != "":
		return r.config.MLRunVersionSpecifier
	case wanted:
		return defaultSpecifier
	case tag != nil:
		return defaultSpecifier + "==" + tag[1]
	default:
		return ""
	}
}

// installs reports whether a command is a pip install of the package.
func installs(commands []string, word *regexp.Regexp) bool {
	for _, command := range commands {
		command = strings.ReplaceAll(strings.ReplaceAll(command, "\r\n", "\n"), "\\\n", " ")
		for _, m := range pipInstall.FindAllStringSubmatch(command, -1) {
			for arg := range strings.FieldsSeq(m[1]) {
				if arg = strings.Trim(arg, `'"`); !strings.HasPrefix(arg, "-") && word.MatchString(arg) {
					return true
				}
			}
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
