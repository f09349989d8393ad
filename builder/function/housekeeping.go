package function

import (
	"fmt"
	"slices"
	"strings"

	"kiln/builder/dockerfile"
	"kiln/builder/lazyregexp"
)

// fileWord finds words that pip and package managers take for a file of the working
// directory although no slash is in them.
var fileWord = lazyregexp.New(`(?i)\.(?:whl|zip|tar|gz|tgz|bz2|xz|egg|deb|rpm|apk|txt|toml|cfg|ini|ya?ml|json|py|sh)$`)

// program is one that looks at what is installed, downloaded and named, and at nothing
// else.
type program struct {
	// commands are the ones of its commands that do no more. Nil: it has none.
	commands []string
	// files are flags that name files or make it run something.
	files []string
	// paths is the number of arguments, flags not counted, before those that are paths.
	// Negative: there are no paths.
	paths int
}

// housekeeping lists the programs that a source may come after.
func housekeeping() map[string]program {
	names := program{paths: -1}
	apt := program{
		paths: -1, files: []string{"-o", "--option", "-c", "--config-file"},
		commands: []string{"update", "upgrade", "dist-upgrade", "full-upgrade", "install", "remove", "purge", "autoremove", "autoclean", "clean"},
	}
	yum := program{
		paths: -1, files: []string{"-c", "--config", "--setopt"},
		commands: []string{"install", "update", "upgrade", "remove", "erase", "autoremove", "clean", "makecache", "groupinstall", "module"},
	}
	pip := program{
		paths: -1, commands: []string{"install", "uninstall", "cache"},
		files: []string{
			"-r", "--requirement", "-c", "--constraint", "-e", "--editable", "-f", "--find-links", "-t", "--target", "--prefix", "--root",
			"--src", "--log", "--report", "--config-settings", "--global-option", "--build-option",
		},
	}
	conda := program{
		paths: -1, files: []string{"-f", "--file", "-p", "--prefix"},
		commands: []string{"install", "update", "upgrade", "remove", "uninstall", "create", "clean", "config"},
	}
	return map[string]program{
		"apt-get": apt, "apt": apt, "yum": yum, "dnf": yum, "microdnf": yum, "pip": pip, "pip3": pip,
		"conda": conda, "mamba": conda, "micromamba": conda,
		"apk":   {paths: -1, commands: []string{"add", "del", "update", "upgrade"}, files: []string{"--repositories-file", "--keys-dir"}},
		"mkdir": {}, "rm": {}, "ln": {}, "touch": {}, "chmod": {paths: 1}, "chown": {paths: 1},
		"useradd": names, "groupadd": names, "adduser": names, "addgroup": names,
		"echo": names, "true": names, ":": names, "set": names, "ldconfig": names, "update-ca-certificates": names,
	}
}

// commandNeeds says why a command may depend on what is in target, or "".
func commandNeeds(command, target string) string {
	command = dockerfile.Normalize(command)
	if strings.HasPrefix(command, "#!") {
		return "is a script of its own"
	}
	for step, ok := range shellSteps(command) {
		if !ok {
			return "holds more than plain words chained with && or ;"
		}
		if why := stepNeeds(step, target); why != "" {
			return why
		}
	}
	return ""
}

// stepNeeds decides about one program with its arguments.
func stepNeeds(step []string, target string) string {
	for len(step) > 0 && strings.HasPrefix(step[0], "DEBIAN_FRONTEND=") {
		step = step[1:]
	}
	if len(step) == 0 {
		return ""
	}
	name, args := step[0], step[1:]
	if len(args) > 1 && (name == "python" || name == "python3") && args[0] == "-m" && args[1] == "pip" {
		name, args = "pip", args[2:]
	}
	p, known := housekeeping()[name]
	if !known {
		return fmt.Sprintf("runs %.40q, which may read anything", name)
	}
	words := slices.DeleteFunc(slices.Clone(args), func(s string) bool { return strings.HasPrefix(s, "-") })
	if p.commands != nil && (len(words) == 0 || !slices.Contains(p.commands, words[0])) {
		return fmt.Sprintf("runs %s for more than installing and removing packages", name)
	}
	for i, word := range words {
		if p.paths >= 0 && i >= p.paths && !strings.HasPrefix(word, "/") {
			return fmt.Sprintf("names the relative path %.40q", word)
		}
	}
	for _, arg := range args {
		if slices.ContainsFunc(p.files, func(flag string) bool { return isFlag(arg, flag) }) {
			return fmt.Sprintf("gives %s the flag %.40q", name, arg)
		}
		if why := wordNeeds(arg, target); why != "" {
			return why
		}
	}
	return ""
}

// requirementNeeds says why a line of the requirements may depend on what is in
// target, or "".
func requirementNeeds(line, target string) string {
	first, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	if strings.HasPrefix(first, "-") {
		flag, _, _ := strings.Cut(first, "=")
		switch flag {
		case "-i", "--index-url", "--extra-index-url", "--trusted-host", "--no-index", "--pre", "--prefer-binary", "--only-binary", "--no-binary":
			return ""
		default:
			return fmt.Sprintf("has the option %.40q", flag)
		}
	}
	// pip puts variables of the environment in. Within an address they can only be a
	// part of it.
	if before, _, found := strings.Cut(line, "${"); found && !strings.Contains(before, "://") {
		return "holds a variable"
	}
	for _, word := range append([]string{first}, strings.Fields(rest)...) {
		if why := wordNeeds(strings.Trim(word, `"'`), target); why != "" {
			return why
		}
	}
	return ""
}

// isFlag reports whether word is the flag, alone or with its value, and for a short
// flag also within a group of them.
func isFlag(word, flag string) bool {
	if strings.HasPrefix(flag, "--") {
		return word == flag || strings.HasPrefix(word, flag+"=")
	}
	return strings.HasPrefix(word, "-") && !strings.HasPrefix(word, "--") && strings.Contains(word, flag[1:])
}

// wordNeeds says why a word may lead to what is in target, or "".
func wordNeeds(word, target string) string {
	value := word
	if strings.HasPrefix(word, "--") {
		_, value, _ = strings.Cut(word, "=")
	} else if strings.HasPrefix(word, "-") && len(word) > 2 {
		value = word[2:]
	}
	switch {
	case strings.Contains(word, "PYTHONPATH"):
		return "mentions PYTHONPATH"
	case strings.Contains(word, "file:"):
		return fmt.Sprintf("names the file %.40q", word)
	case strings.Contains(word, "://"):
		return ""
	case related(value, target):
		return fmt.Sprintf("mentions %.40q, which leads to the source", value)
	case isRelative(value):
		return fmt.Sprintf("names the relative path %.40q", value)
	default:
		return ""
	}
}

// related reports whether a word is an absolute path that is target, above or below
// it, where a wildcard may stand for anything, or mentions target or a part of it.
func related(word, target string) bool {
	if !strings.HasPrefix(word, "/") {
		target = strings.Trim(target, "/")
		return strings.Contains(word, target) || slices.Contains(strings.Split(target, "/"), word)
	}
	if i := strings.IndexAny(word, "*?"); i >= 0 {
		word = word[:strings.LastIndexByte(word[:i], '/')+1]
	}
	word, target = cleanDir(word), cleanDir(target)
	return strings.HasPrefix(target, word) || strings.HasPrefix(word, target)
}

// isRelative reports whether a word may be a path of the working directory.
func isRelative(word string) bool {
	if strings.HasPrefix(word, "/") {
		return false
	}
	return word == "." || word == ".." || strings.Contains(word, "/") || fileWord.MatchString(word)
}
