package registry

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"kiln/builder"
)

// Clouds, as Config.Clouds names them.
const (
	// cloudECR is Amazon's Elastic Container Registry.
	cloudECR = "ecr"
	// cloudGAR is Google's Artifact Registry, and what is left of its predecessor.
	cloudGAR = "gar"
	// cloudACR is Azure's Container Registry.
	cloudACR = "acr"
)

// cloud turns the identity that this process has at a provider into logins at the
// provider's registries.
type cloud interface {
	// serves reports whether the host is one of the provider's registries.
	serves(host string) bool
	// login returns the credentials for a host that the provider serves; registry makes
	// requests to it. The error matches errDenied when the provider says no.
	login(ctx context.Context, host string, registry http.RoundTripper) (builder.Login, error)
}

// cloudsOf returns those that the configuration allows.
func cloudsOf(cfg Config, ecr *ecrAccount) []cloud {
	var all []cloud
	for _, known := range []struct {
		name string
		cloud
	}{{cloudECR, ecr}, {cloudGAR, google{}}, {cloudACR, azure{}}} {
		if slices.Contains(cfg.Clouds, known.name) {
			all = append(all, known.cloud)
		}
	}
	return all
}

// under reports whether host is a name below one of the domains, by default ports.
func under(host string, domains ...string) bool {
	host = strings.ToLower(host)
	return slices.ContainsFunc(domains, func(domain string) bool { return strings.HasSuffix(host, "."+domain) })
}
