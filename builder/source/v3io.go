package source

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
)

const v3ioHint = "the access key is taken from V3IO_ACCESS_KEY, the API of URLs without a host from V3IO_API"

// openV3IO downloads from Iguazio's data layer by its web API: the path is that of the
// URL, and the session key a header. As in MLRun the API of v3io:///path is
// configured. Both v3io and v3ios mean HTTPS, except that v3io means plain HTTP to
// hosts that may be spoken to so: the key is in every request.
func (s *Sources) openV3IO(ctx context.Context, l location, env map[string]string, tag string) (content, error) {
	u := l.url
	u.Scheme = "https"
	if l.url.Scheme == "v3io" && s.network.plain(u.Host) {
		u.Scheme = "http"
	}
	if u.Host == "" {
		api, err := url.Parse(cmp.Or(first(env, "V3IO_API"), s.cfg.V3IOAPI))
		if err != nil || api.Host == "" || (api.Scheme != "http" && api.Scheme != "https") || api.User != nil {
			return content{}, invalid("the source names no host, and V3IO_API is not http(s)://host[:port]")
		}
		u.Scheme, u.Host = api.Scheme, api.Host
	}
	var authorize func(*http.Request)
	if key := first(env, "V3IO_ACCESS_KEY"); key != "" {
		authorize = func(r *http.Request) { r.Header.Set("X-V3io-Session-Key", key) }
	}
	return s.get(ctx, &u, authorize, tag, v3ioHint)
}
