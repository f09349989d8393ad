package main

import (
	"fmt"

	"sigs.k8s.io/yaml"

	"kiln/builder/registry"
)

// registryHosts are settings by registry. As a flag and in the environment they are
// written as in the configuration file, in YAML's flow style for example.
type registryHosts map[string]hostSettings

// hostSettings are those of one registry, see registry.Host.
type hostSettings struct {
	CA            string   `json:"ca"`
	Cert          string   `json:"cert"`
	Key           string   `json:"key"`
	Insecure      bool     `json:"insecure"`
	SkipTLSVerify bool     `json:"skip_tls_verify"`
	Mirrors       []string `json:"mirrors"`
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *registryHosts) UnmarshalText(text []byte) error {
	var hosts map[string]hostSettings
	if err := yaml.UnmarshalStrict(text, &hosts); err != nil {
		return fmt.Errorf("it is not YAML such as {registry.example.com: {ca: /etc/kiln/ca.pem}}: %w", err)
	}
	*h = hosts
	return nil
}

func (f buildFlags) registry() registry.Config {
	cfg := registry.Config{
		DockerConfig: f.Registry.DockerConfig, Insecure: f.Registry.Insecure, Clouds: f.Registry.Cloud, CA: f.Registry.CA,
		Hosts: make(map[string]registry.Host, len(f.Registry.Hosts)),
	}
	if f.Registry.SecretsDir != "" {
		cfg.Secrets = registry.Dir(f.Registry.SecretsDir)
	}
	for name, host := range f.Registry.Hosts {
		cfg.Hosts[name] = registry.Host(host)
	}
	return cfg
}
