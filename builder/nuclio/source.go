package nuclio

import (
	"encoding/base64"
	"net/url"
	"strings"
)

// servingCode is the code of a serving function that brings none: the handler of
// MLRun's graph server.
const servingCode = `from mlrun.runtimes import nuclio_init_hook


def init_context(context):
    nuclio_init_hook(context, globals(), "serving_v2")


def handler(context, event):
    return context.mlrun_handler(context, event)
`

// servingHandler is where MLRun's graph server is, for code that brings no handler.
const servingHandler = "mlrun.serving.serving_wrapper:handler"

// code sets where the code comes from.
func (m *maker) code(spec, build tree) {
	source := m.spec.Source
	inline := m.build.text("functionSourceCode")
	if inline != "" {
		build["functionSourceCode"] = inline
	}
	if source != "" {
		m.source(source, spec, build)
	}
	if m.spec.Kind != "serving" || !empty(build["functionSourceCode"]) {
		return
	}
	switch {
	case source == "":
		build["functionSourceCode"] = base64.StdEncoding.EncodeToString([]byte(servingCode))
	case m.fields.text("function_handler") == "":
		spec["handler"] = servingHandler
	}
}

// source sets the code entry: what Nuclio fetches before it builds.
func (m *maker) source(source string, spec, build tree) {
	attributes := map[string]any{}
	workDir, handler := workDirAndHandler(m.fields.text("function_handler"))
	if workDir = orElse(m.fields.text("workdir"), workDir); workDir != "" {
		attributes["workDir"] = workDir
	}
	var kind string
	path := source
	scheme, rest, _ := strings.Cut(source, "://")
	switch scheme {
	case "s3":
		kind = "s3"
		m.s3(rest, attributes)
	case "git":
		kind, path = "git", m.git(rest, attributes)
	case "http", "https":
		kind = "archive"
		m.sessionKey(m.spec.Env["V3IO_ACCESS_KEY"], attributes)
	case "v3io", "v3ios":
		kind, path = "archive", m.v3io(scheme, rest)
		m.sessionKey(m.credential("V3IO_ACCESS_KEY"), attributes)
	default:
		m.fault("spec.build.source", "Nuclio cannot fetch this; it takes git://, s3://, http(s):// and v3io(s):// addresses")
		return
	}
	m.hideUserInfo(path)
	spec["handler"] = handler
	build["path"], build["codeEntryType"], build["codeEntryAttributes"] = path, kind, attributes
}

func (m *maker) s3(rest string, attributes map[string]any) {
	bucket, key, _ := strings.Cut(rest, "/")
	if bucket == "" || key == "" {
		m.fault("spec.build.source", "names no object; write s3://bucket/key")
	}
	attributes["s3Bucket"], attributes["s3ItemKey"] = bucket, key
	attributes["s3AccessKeyId"] = m.credential("AWS_ACCESS_KEY_ID")
	attributes["s3SecretAccessKey"] = m.credential("AWS_SECRET_ACCESS_KEY")
	attributes["s3SessionToken"] = m.credential("AWS_SESSION_TOKEN")
}

// git returns the address that Nuclio clones.
func (m *maker) git(rest string, attributes map[string]any) string {
	address, ref, _ := strings.Cut("https://"+rest, "#")
	switch {
	case ref == "":
		m.fault("spec.build.source", "git branch or refs must be specified in the source, as git://host/org/repo.git#branch or #refs/heads/branch")
	case strings.HasPrefix(ref, "refs/"):
		attributes["reference"] = ref
	default:
		attributes["branch"] = ref
	}
	user, password := m.credential("GIT_USERNAME"), m.credential("GIT_PASSWORD")
	if token := m.credential("GIT_TOKEN"); token != "" {
		user, password = gitLogin(token)
	}
	attributes["username"], attributes["password"] = user, password
	return address
}

// gitLogin says how a token is presented: fine-grained ones of GitHub and those of
// GitLab are passwords, others are user names.
func gitLogin(token string) (user, password string) {
	if strings.HasPrefix(token, "github_pat_") || strings.HasPrefix(token, "glpat") {
		return "oauth2", token
	}
	return token, "x-oauth-basic"
}

func (m *maker) v3io(scheme, rest string) string {
	if path, ok := strings.CutPrefix(rest, "/"); ok {
		if m.spec.Config.V3IOAPI == "" {
			m.fault("spec.build.source", "names no host, and no address of the v3io API is configured")
		}
		return strings.TrimSuffix(m.spec.Config.V3IOAPI, "/") + "/" + path
	}
	return strings.Replace(scheme, "v3io", "http", 1) + "://" + rest
}

func (m *maker) sessionKey(key string, attributes map[string]any) {
	if key != "" {
		m.hidden = append(m.hidden, key)
		attributes["headers"] = map[string]any{"X-V3io-Session-Key": key}
	}
}

// credential returns the build argument, or the secret of the project.
func (m *maker) credential(name string) string {
	value := orElse(m.spec.Env[name], m.secrets[name])
	if value != "" {
		m.hidden = append(m.hidden, value)
	}
	return value
}

// hideUserInfo hides credentials that an address holds.
func (m *maker) hideUserInfo(address string) {
	u, err := url.Parse(address)
	if err != nil || u.User == nil {
		return
	}
	if password, ok := u.User.Password(); ok {
		m.hidden = append(m.hidden, password)
	} else {
		m.hidden = append(m.hidden, u.User.Username())
	}
	m.hidden = append(m.hidden, u.User.String())
}

// workDirAndHandler splits a function_handler: "a/b#main:Handler" is the handler
// main:Handler in the folder a/b of the source.
func workDirAndHandler(text string) (workDir, handler string) {
	workDir, handler, found := strings.Cut(text, "#")
	if !found {
		workDir, handler = "", text
	}
	handler, _, _ = strings.Cut(handler, "#")
	switch {
	case handler == "":
		return workDir, defaultHandler
	case !strings.Contains(handler, ":"):
		return workDir, handler + ":handler"
	default:
		return workDir, handler
	}
}
