package archive

import "testing"

func TestPathsAreToldFromURLs(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		".": true, "./src": true, "../x": true, "/abs": true, "src/a.zip": true, "a:b": true, "me@x": true,
		"": false, "git@host:x": false, "s3://b/k": false, "context://x": false, "x://": false,
	} {
		if got := IsPath(text); got != want {
			t.Errorf("IsPath(%q) = %t", text, got)
		}
	}
}
