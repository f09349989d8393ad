package main

import (
	"fmt"
	"net/netip"
	"os"
	"time"

	"kiln/builder/source"
	"kiln/builder/source/archive"
	"kiln/cmd/cli"
)

// sourceFlags say how the code of functions is fetched.
type sourceFlags struct {
	CacheDir           string         `help:"Where downloaded archives are kept; several workers may share it. Defaults to a folder of the data directory." placeholder:"DIR"`
	CacheSize          size           `default:"10GiB" help:"Limit of the cache; what was not used for the longest time goes first."`
	MaxDownload        size           `default:"2GiB" help:"Limit of one archive, or of what is fetched of one git repository."`
	MaxUnpacked        size           `default:"8GiB" help:"Limit of all files of one source."`
	MaxEntries         int            `default:"250000" help:"Limit of files, folders and links of one source."`
	MaxRatio           int64          `default:"200" help:"How much larger than its archive a source of more than 64 MiB may be."`
	Timeout            time.Duration  `default:"15m" help:"Time limit of fetching one source."`
	Insecure           []string       `help:"Hosts that code may be fetched from without encryption (http://, git daemons, S3 endpoints), or *; loopback always may." placeholder:"HOST"`
	AllowAddresses     []netip.Prefix `help:"Networks that sources may be in although they are link-local or a cloud's metadata service." placeholder:"CIDR"`
	CA                 string         `type:"existingfile" help:"CA certificates that servers are checked with, beside the system's." placeholder:"FILE"`
	KnownHosts         string         `type:"existingfile" help:"SSH keys of git servers, for requests without GIT_SSH_KNOWN_HOSTS." placeholder:"FILE"`
	Submodules         bool           `help:"Fetch the submodules of git repositories too."`
	AmbientCredentials bool           `help:"Let requests without credentials for s3, gs and az use the worker's own: every requester can then read what the worker can."`
	V3IOAPI            string         `name:"v3io-api" env:"KILN_SOURCE_V3IO_API" help:"Address for v3io sources without a host." placeholder:"URL"`
}

// config is that of builder/source, with the cache in dir unless it is configured.
func (f sourceFlags) config(dir string, contexts source.Contexts) (source.Config, error) {
	cfg := source.Config{
		CacheDir: dir, CacheSize: int64(f.CacheSize), Timeout: f.Timeout, Insecure: f.Insecure, AllowAddresses: f.AllowAddresses,
		KnownHosts: f.KnownHosts, Submodules: f.Submodules, Ambient: f.AmbientCredentials, V3IOAPI: f.V3IOAPI, Contexts: contexts,
		Limits: archive.Limits{Download: int64(f.MaxDownload), Unpacked: int64(f.MaxUnpacked), Entries: f.MaxEntries, Ratio: f.MaxRatio},
	}
	if f.CacheDir != "" {
		cfg.CacheDir = f.CacheDir
	}
	if f.CA != "" {
		raw, err := os.ReadFile(f.CA)
		if err != nil {
			return cfg, cli.Usage(fmt.Errorf("--source-ca: %w", err))
		}
		cfg.CA = string(raw)
	}
	return cfg, nil
}
