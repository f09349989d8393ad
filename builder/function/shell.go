package function

import (
	"iter"
	"path"
	"strings"
)

// shellSteps yields the words of each program of a command that consists of plain
// words, chained with &&, ; or line breaks. ok is false, and nothing follows, where
// the shell would do more than split it: expand, redirect, group, run in the
// background, match files of the working directory.
func shellSteps(command string) iter.Seq2[[]string, bool] {
	return func(yield func([]string, bool) bool) {
		var words []string
		for rest := command; ; {
			rest = strings.TrimLeft(rest, " \t")
			if after, ok := strings.CutPrefix(rest, "\\\n"); ok {
				rest = after
				continue
			}
			if end := separator(rest); end != "" || rest == "" {
				if !yield(words, true) || rest == "" {
					return
				}
				words, rest = nil, rest[len(end):]
				continue
			}
			word, after, ok := shellWord(rest)
			if !ok {
				yield(nil, false)
				return
			}
			words, rest = append(words, word), after
		}
	}
}

// separator returns what ends a program at the beginning of text, or "".
func separator(text string) string {
	for _, s := range []string{"&&", ";", "\n"} {
		if strings.HasPrefix(text, s) {
			return s
		}
	}
	return ""
}

// shellWord cuts the first word off text and takes its quotes away. ok is false for a
// word that the shell does not take as it is written.
func shellWord(text string) (word, rest string, ok bool) {
	var b strings.Builder
	quote := byte(0)
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case quote == 0 && (c == ' ' || c == '\t' || separator(text[i:]) != ""):
			return b.String(), text[i:], true
		case quote == 0 && strings.HasPrefix(text[i:], "\\\n"):
			i++
		case quote == 0 && (c == '\'' || c == '"'):
			quote = c
		case quote != 0 && c == quote:
			quote = 0
		case !literal(c, quote, b.String()):
			return "", "", false
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), "", quote == 0
}

// literal reports whether the shell takes a character for itself, after the
// characters of the same word and within quotes of that kind, or none (0).
func literal(c, quote byte, before string) bool {
	switch {
	case c == 0 || c == '\n':
		return false
	case quote == '\'':
		return true
	case quote == '"':
		return strings.IndexByte("$`\\", c) < 0
	case c == '*' || c == '?':
		// Of an absolute path, so that it cannot stand for files of the working directory.
		return strings.HasPrefix(before, "/")
	case c == '~':
		return before != ""
	default:
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("_./:=@%+,^-", c) >= 0
	}
}

// cleanDir returns a path with a slash at its end and no "." or ".." in it.
func cleanDir(dir string) string { return strings.TrimRight(path.Clean(dir), "/") + "/" }
