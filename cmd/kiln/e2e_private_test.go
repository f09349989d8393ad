//go:build e2e

package main

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/builder/enginetest"
)

func TestPrivateRegistriesWithHtpasswdAndTLSOnBothSides(t *testing.T) {
	from := newPrivateRegistry(t, enginetest.NewAuthority(t), "127.0.0.1", "reader", "e2e-read-password")
	to := newPrivateRegistry(t, enginetest.NewAuthority(t), "127.0.0.1", "writer", "e2e-write-password")
	base := enginetest.PushBase(t, from.host+"/team/base", from.options...).Ref
	dir := t.TempDir()
	dockerConfig := filepath.Join(dir, "docker.json")
	if err := os.WriteFile(dockerConfig, []byte(`{"auths":{`+from.login()+","+to.login()+`}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	k := up(t, filepath.Join(dir, "data"), "KILN_REGISTRY_DOCKER_CONFIG="+dockerConfig,
		fmt.Sprintf("KILN_REGISTRY_HOSTS={%q: {ca: %s}, %q: {ca: %s}}", from.host, from.ca.File, to.host, to.ca.File))
	js := k.js(t)
	if _, err := js.Publish(t.Context(), "build.requested", pushingTo(t, "private", base, to.host), jetstreamID("private")...); err != nil {
		t.Fatal(err)
	}
	all := terminals(t, js, "private", time.Minute)
	if len(all) != 1 || all[0].subject != "build.completed" {
		t.Fatalf("terminal events = %s, want one build.completed", all[0].Data)
	}
	ref, err := name.ParseReference(to.host + "/team/private:1")
	if err != nil {
		t.Fatal(err)
	}
	if desc, err := remote.Head(ref, to.options...); err != nil || desc.Digest.String() != all[0].field(t, "digest") {
		t.Errorf("the registry has %v (%v)", desc, err)
	}
	for _, e := range emitted(t, js) {
		for _, p := range []privateRegistry{from, to} {
			if text := string(e.Data); strings.Contains(text, p.password) || strings.Contains(text, base64.StdEncoding.EncodeToString([]byte(p.user+":"+p.password))) {
				t.Errorf("%s shows a password: %s", e.subject, text)
			}
		}
	}
	if strings.Contains(k.out.String(), "e2e-read") || strings.Contains(k.out.String(), "e2e-write") {
		t.Errorf("the log shows a password: %s", k.out)
	}
}
