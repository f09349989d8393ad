package nuclio_test

import (
	"encoding/json"
	"strings"
	"testing"

	"kiln/builder/nuclio"
)

func FuzzFunction(f *testing.F) {
	for _, fields := range []string{
		``, `"config": {"a.b": 1, "\\x.y\\.z": [2], "": {}}`, `"base_spec": {"spec": 1}`, `"build": {"source": "git://h/r#b", "extra_args": "a --b c"}`,
		`"env": [{"name": 1}], "volumes": [{}], "volume_mounts": [1]`, `"config": {"spec.build.commands": "x", "metadata.labels": 3}`, `"graph": {"a": 1e999}`,
	} {
		f.Add(fields, "serving", "hunter2hunter2")
	}
	f.Fuzz(func(t *testing.T, fields, kind, secret string) {
		s := spec(fields)
		s.Kind = kind
		s.Env = map[string]string{"GIT_TOKEN": secret}
		made, err := s.Function(nil)
		if err != nil {
			return
		}
		if _, err := json.Marshal(made.Config); err != nil {
			t.Fatalf("the configuration is not JSON: %v", err)
		}
		if _, err := json.Marshal(made.Shown(func(text string) string { return text })); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzPipInstall(f *testing.F) {
	for _, line := range []string{"a", "-r x y", "'", "$(id)", "--x=y z", "-", "a\nb", "-r", ""} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		if strings.ContainsRune(line, 0) {
			t.Skip()
		}
		got := strings.TrimPrefix(nuclio.PipInstall([]string{line, "end"}), "python -m pip install ")
		words, ok := shellWords(got)
		if !ok || len(words) < 2 || len(words) > 3 || words[len(words)-1] != "end" {
			t.Fatalf("%q becomes %s: %q", line, got, words)
		}
	})
}

// shellWords reads words as quote writes them: bare, in '…', or "'".
func shellWords(text string) (words []string, ok bool) {
	word, inWord := "", false
	for len(text) > 0 {
		switch c := text[0]; {
		case c == '\'' || c == '"':
			end := strings.IndexByte(text[1:], c)
			if end < 0 || c == '"' && text[1:1+end] != "'" {
				return nil, false
			}
			word, inWord, text = word+text[1:1+end], true, text[end+2:]
		case c == ' ':
			if inWord {
				words = append(words, word)
			}
			word, inWord, text = "", false, text[1:]
		case strings.IndexByte("$`\\;&|<>()\n\t*?[]#~!{}", c) >= 0 && (c != '~' || !inWord):
			return nil, false
		default:
			word, inWord, text = word+string(c), true, text[1:]
		}
	}
	if inWord {
		words = append(words, word)
	}
	return words, true
}
