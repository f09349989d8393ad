package main

import (
	"bytes"
	"encoding/pem"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// recipe is an image: its configuration, what is in it beside the executables, and where
// those go.
type recipe struct {
	config      v1.Config
	files       []file
	executables []string
}

// file is one of a layer. A name that ends with "/" is a folder.
type file struct {
	name string
	data []byte
	mode int64
}

func recipes() map[string]recipe {
	return map[string]recipe{
		// As deploy/Dockerfile; a test compares.
		"kiln": {
			config: v1.Config{
				Entrypoint: []string{"/kiln"}, User: "65532:65532", WorkingDir: "/tmp",
				Env:    []string{"PATH=/", "HOME=/tmp"},
				Labels: map[string]string{"org.opencontainers.image.title": "kiln"},
			},
			files:       []file{{"tmp/", nil, 0o1777}, {"etc/ssl/certs/ca-certificates.crt", certificates(), 0o644}},
			executables: []string{"kiln", "kilnd", "kiln-init"},
		},
		// As the stages kaniko-base and kaniko-executor of the executor's own Dockerfile,
		// without its credential helpers.
		"kaniko": {
			config: v1.Config{
				Entrypoint: []string{"/kaniko/executor"}, WorkingDir: "/workspace",
				Env: []string{
					"HOME=/root", "USER=root", "PATH=/usr/local/bin:/kaniko", "SSL_CERT_DIR=/kaniko/ssl/certs", "DOCKER_CONFIG=/kaniko/.docker/",
				},
				Labels: map[string]string{"org.opencontainers.image.title": "kaniko-executor"},
			},
			files: []file{
				{"kaniko/", nil, 0o777},
				{"kaniko/.docker/", nil, 0o777},
				{"kaniko/ssl/certs/ca-certificates.crt", certificates(), 0o644},
				{"etc/nsswitch.conf", []byte("hosts: files dns\n"), 0o644},
			},
			executables: []string{"kaniko/executor"},
		},
	}
}

// certificates returns the roots of Mozilla's trust store in PEM form. Those that are
// trusted with conditions are left out: a file cannot state them.
func certificates() []byte {
	var out bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			// Writing to memory cannot fail.
			_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate})
		}
	}
	return out.Bytes()
}
