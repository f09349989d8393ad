package dockerfile

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"kiln/builder/lazyregexp"
)

const (
	maxName = 255
	maxBase = 1024
	// maxLine keeps below the 65 535 bytes that Dockerfile parsers take.
	maxLine = 65_000
	// lineBreaks are all characters that pip (Python's splitlines) ends a line at.
	lineBreaks = "\n\r\v\f\x1c\x1d\x1e\u0085\u2028\u2029"
)

var (
	targetDir    = lazyregexp.New(`^/[A-Za-z0-9._+@=,~/ -]*$`)
	numericOwner = lazyregexp.New(`^[0-9]{1,10}:[0-9]{1,10}$`)
	argName      = lazyregexp.New(`^[A-Za-z_][A-Za-z0-9_]*$`)
	reference    = lazyregexp.New(`^(?:(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?/)?` +
		`[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*` +
		`(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?` +
		`(?:@(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}))?$`)
)

// CheckBase reports why ref cannot stand after FROM. It takes what the OCI
// distribution rules call a reference, with or without registry, tag and digest.
func CheckBase(ref string) error {
	switch {
	case ref == "":
		return errors.New("is empty")
	case len(ref) > maxBase:
		return fmt.Errorf("is longer than %d bytes", maxBase)
	case !reference.MatchString(ref):
		return fmt.Errorf("%q is not an image reference", ref)
	default:
		return nil
	}
}

// CheckName reports why name cannot be a build argument or a secret id.
func CheckName(name string) error {
	switch {
	case len(name) > maxName:
		return fmt.Errorf("the name is longer than %d bytes", maxName)
	case !argName.MatchString(name):
		return fmt.Errorf("%q is not a name: letters, digits and underscores, not beginning with a digit", name)
	default:
		return nil
	}
}

// CheckTarget reports why dir cannot be the folder of the image that the source goes
// to: an absolute path of plain characters, without "..".
func CheckTarget(dir string) error {
	switch {
	case len(dir) > maxBase:
		return fmt.Errorf("is longer than %d bytes", maxBase)
	case !targetDir.MatchString(dir):
		return fmt.Errorf("%.80q is not an absolute path of letters, digits, spaces and . _ - + @ = , ~", dir)
	case slices.Contains(strings.Split(dir, "/"), ".."):
		return fmt.Errorf("%.80q leads upwards with \"..\"", dir)
	case strings.Trim(dir, "/") == "":
		return errors.New("is the root folder, where the source would be mixed with the system")
	default:
		return nil
	}
}

// CheckOwner reports why owner is not "uid:gid"; empty is root.
func CheckOwner(owner string) error {
	if owner != "" && !numericOwner.MatchString(owner) {
		return fmt.Errorf("%.80q is not uid:gid", owner)
	}
	return nil
}

// CheckCommand reports why command cannot be rendered. A shell script with any
// content passes; what cannot be part of one does not.
func CheckCommand(command string) error {
	if err := checkText(command); err != nil {
		return err
	}
	command = Normalize(command)
	switch {
	case command == "":
		return errors.New("is blank")
	case strings.Contains(command, "\r"):
		return errors.New("holds a carriage return that does not end a line")
	case strings.HasPrefix(command, "#!") && !shebang.MatchString(command):
		first, _, _ := strings.Cut(command, "\n")
		return fmt.Errorf("the first line %.80q must be #! with an absolute path and at most one plain argument", first)
	default:
		return nil
	}
}

// CheckRequirement reports why line cannot be one line of a requirements file.
func CheckRequirement(line string) error {
	if err := checkText(line); err != nil {
		return err
	}
	switch {
	case strings.TrimSpace(line) == "":
		return errors.New("is blank")
	case strings.ContainsAny(line, lineBreaks):
		return errors.New("holds a line break")
	case strings.HasSuffix(strings.TrimSpace(line), `\`):
		return errors.New("ends with a backslash, which would join it with the next line")
	default:
		return nil
	}
}

// SplitRequirement cuts text at everything that pip takes for a line break.
func SplitRequirement(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(lineBreaks, r) })
}

// CheckExtra reports why text cannot be appended to a Dockerfile. It does not
// parse it.
func CheckExtra(text string) error {
	if err := checkText(text); err != nil {
		return err
	}
	for i, line := range strings.Split(text, "\n") {
		if len(line) > maxLine {
			return fmt.Errorf("line %d is longer than %d bytes", i+1, maxLine)
		}
	}
	return nil
}

func checkText(text string) error {
	switch {
	case strings.Contains(text, "\x00"):
		return errors.New("holds a NUL byte")
	case !utf8.ValidString(text):
		return errors.New("is not valid UTF-8")
	default:
		return nil
	}
}
