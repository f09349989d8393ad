package function_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"strings"
	"time"

	"kiln/builder"
	"kiln/builder/function"
)

const (
	casesRegistry = "registry.example.com/myrepo"
	serverVersion = "1.7.0"
)

// config translates the server's configuration.
func (c mlrunCase) config() (function.Config, builder.Config) {
	in := c.in.object("config")
	f := function.Config{Registry: casesRegistry, MLRunVersion: serverVersion, ImageByKind: map[string]string{}}
	set(in, "httpdb.builder.docker_registry", &f.Registry)
	set(in, "httpdb.builder.docker_registry_secret", &f.RegistrySecret)
	set(in, "httpdb.builder.mlrun_version_specifier", &f.MLRunVersionSpecifier)
	set(in, "httpdb.builder.function_target_image_name_prefix_template", &f.TargetNameTemplate)
	set(in, "httpdb.builder.pip_version", &f.PipVersion)
	set(in, "package_path", &f.MLRunPackage)
	set(in, "default_base_image", &f.DefaultBaseImage)
	set(in, "images_tag", &f.ImagesTag)
	set(in, "images_registry", &f.ImagesRegistry)
	set(in, "vendor_images_registry", &f.VendorImagesRegistry)
	set(in, "function.spec.service_account.default", &f.ServiceAccount)
	set(c.in, "server_version", &f.MLRunVersion)
	if patterns, ok := get[string](in, "images_to_enrich_registry"); ok {
		f.ImagesToEnrich = strings.Split(patterns, ",")
		if patterns == "" {
			f.ImagesToEnrich = []string{}
		}
	}
	for key := range in.keys {
		if kind, ok := strings.CutPrefix(key, "function_defaults.image_by_kind."); ok {
			f.ImageByKind[kind], _ = get[string](in, key)
		}
	}
	f.NodeSelector = decoded(in, "default_function_node_selector")
	f.SourceOwner = owner(in, c.in)
	var b builder.Config
	b.DefaultArgs = decoded(in, "httpdb.builder.build_args")
	_, name := get[string](in, "httpdb.builder.pip_ca_secret_name")
	_, key := get[string](in, "httpdb.builder.pip_ca_secret_key")
	get[string](in, "httpdb.builder.pip_ca_path")
	if name && key {
		b.Pip.CA = certificate()
	}
	return f, b
}

// certificate returns any certificate in PEM form: only where it goes is looked at.
func certificate() string {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func set(f *facts, key string, into *string) {
	if value, ok := get[string](f, key); ok {
		*into = value
	}
}

// decoded returns a map that MLRun keeps as base64 of JSON.
func decoded(f *facts, key string) map[string]string {
	text, ok := get[string](f, key)
	if !ok {
		return nil
	}
	var m map[string]string
	data, err := base64.StdEncoding.DecodeString(text)
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err != nil {
		panic(shapeError{fmt.Sprintf("%s: %v", key, err)})
	}
	return m
}

// owner is who MLRun gives the source to. Without enrichment it is nobody.
func owner(config, in *facts) string {
	mode, _ := get[string](config, "function.spec.security_context.enrichment_mode")
	context := in.object("security_context")
	user, ok := get[json.Number](context, "run_as_user")
	group, _ := get[json.Number](context, "run_as_group")
	if mode == "" || mode == "disabled" || !ok {
		return ""
	}
	return user.String() + ":" + group.String()
}

// input translates the request. withMLRun is what an absent with_mlrun stands for.
func (c mlrunCase) input(withMLRun *bool) function.Input {
	request := c.in.object("request")
	in := function.Input{Function: c.object(), WithMLRun: withMLRun}
	if flag, ok := get[bool](request, "with_mlrun"); ok {
		in.WithMLRun = &flag
	}
	in.SkipDeployed, _ = get[bool](request, "skip_deployed")
	in.ForceBuild, _ = get[bool](request, "force_build")
	in.MLRunVersionSpecifier, _ = get[string](request, "mlrun_version_specifier")
	in.BuilderEnv, _ = get[map[string]string](request, "builder_env")
	in.ClientVersion, _ = get[string](request, "client_version")
	in.ClientPythonVersion, _ = get[string](request, "client_python_version")
	return in
}

// object returns the function with a name, which some cases leave out.
func (c mlrunCase) object() json.RawMessage { return named(c.function) }

func named(object map[string]any) json.RawMessage {
	f := map[string]any{"kind": "job", "metadata": map[string]any{"name": "my-func", "project": "my-proj"}, "spec": map[string]any{}}
	maps.Copy(f, object)
	return json.RawMessage(jsonText(f))
}

func jsonText(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return string(text)
}

func decode(text json.RawMessage) map[string]any {
	var object map[string]any
	if err := json.Unmarshal(text, &object); err != nil {
		panic(err)
	}
	return object
}

// at returns a value inside a decoded object, or nil.
func at(object map[string]any, path ...string) any {
	var value any = object
	for _, key := range path {
		m, _ := value.(map[string]any)
		value = m[key]
	}
	return value
}

// textAt returns a text inside of a decoded object.
func textAt(object map[string]any, path ...string) string {
	text, _ := at(object, path...).(string)
	return text
}

// textsAt returns a list of texts inside of a decoded object.
func textsAt(object map[string]any, path ...string) []string {
	list, _ := at(object, path...).([]any)
	texts := make([]string, 0, len(list))
	for _, item := range list {
		text, _ := item.(string)
		texts = append(texts, text)
	}
	return texts
}

// with returns a copy of a decoded object with a value put in.
func with(object map[string]any, value any, path ...string) map[string]any {
	copied := make(map[string]any, len(object)+1)
	maps.Copy(copied, object)
	if len(path) == 1 {
		copied[path[0]] = value
		return copied
	}
	inner, _ := copied[path[0]].(map[string]any)
	copied[path[0]] = with(inner, value, path[1:]...)
	return copied
}

// world is everything that plans look up.
type world struct {
	builder.Registry
	builder.Sources
	secrets map[string]string
}

func (w world) lookup() builder.Lookup { return builder.Lookup{Registry: w, Sources: w, Secrets: w} }

// With implements builder.Registry.
func (w world) With(string) builder.Registry { return w }

// Resolve implements builder.Registry: every image exists.
func (world) Resolve(_ context.Context, ref, _ string) (builder.Image, error) {
	return builder.Image{Ref: ref, Digest: "sha256:" + strings.Repeat("a", 64)}, nil
}

// Pin implements builder.Sources: every source exists.
func (world) Pin(context.Context, string, map[string]string) (string, error) {
	return "sha256:" + strings.Repeat("b", 64), nil
}

// Secrets implements builder.SecretStore.
func (w world) Secrets(context.Context, string) (map[string]string, error) { return w.secrets, nil }
