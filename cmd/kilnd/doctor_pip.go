package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"kiln/cmd/cli"
)

// checkPip asks every configured index for its first page.
func (d *doctorCmd) checkPip(ctx context.Context) []check {
	const name = "pip index"
	pip, err := d.Pip.pip()
	if err != nil {
		return []check{lacking(name, err, "correct pip.ca")}
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if pip.CA != "" && !roots.AppendCertsFromPEM([]byte(pip.CA)) {
		return []check{lacking(name, fmt.Errorf("%s holds no certificate in PEM form", d.Pip.CA), "correct pip.ca")}
	}
	var checks []check
	for _, index := range append([]string{pip.IndexURL}, pip.ExtraIndexURLs...) {
		if index != "" {
			checks = append(checks, checkIndex(ctx, name, index, roots, pip.TrustedHosts))
		}
	}
	if len(checks) == 0 {
		checks = []check{skipped(name, "none is configured: pip uses that of the base image, or PyPI")}
	}
	return checks
}

func checkIndex(ctx context.Context, name, index string, roots *x509.CertPool, trusted []string) check {
	shown := cli.RedactURL(index)
	u, err := url.Parse(index)
	if err != nil || u.Host == "" {
		// The error of the parser would show the URL.
		return lacking(name, fmt.Errorf("%s is not a URL", shown), "correct pip.index_url")
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{
		RootCAs: roots, MinVersion: tls.VersionTLS12,
		InsecureSkipVerify: slices.Contains(trusted, u.Host) || slices.Contains(trusted, u.Hostname()), //nolint:gosec // as pip's --trusted-host
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, index, nil)
	if err != nil {
		return lacking(name, fmt.Errorf("%s is not a URL", shown), "correct pip.index_url")
	}
	req.Header.Set("User-Agent", "kiln")
	answer, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return lacking(name, fmt.Errorf("%s", strings.ReplaceAll(cli.RedactURL(err.Error()), index, shown)),
			"see that the index runs and is reachable from where builds run; pip.ca names its certificates")
	}
	defer answer.Body.Close()
	switch {
	case answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden:
		return lacking(name, fmt.Errorf("%s refuses the login: %s", shown, answer.Status), "put user and password into pip.index_url")
	case answer.StatusCode >= http.StatusBadRequest:
		return lacking(name, fmt.Errorf("%s answers %s", shown, answer.Status), "correct the path of pip.index_url; it mostly ends with /simple")
	}
	return passed(name, shown)
}
