package archive

import "kiln/builder/lazyregexp"

// address matches what begins like a URL, and Git's short form of SSH: git@host:path.
var address = lazyregexp.New(`^(?:[A-Za-z][A-Za-z0-9+.-]*://|[A-Za-z0-9._-]+@[A-Za-z0-9._-]+:(?:[^/\\].*|/[^/].*)$)`)

// IsPath reports whether text names a file or folder of this machine, and no URL.
func IsPath(text string) bool { return text != "" && !address.MatchString(text) }
