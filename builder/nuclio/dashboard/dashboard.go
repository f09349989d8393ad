// Package dashboard deploys functions through the HTTP API of a Nuclio dashboard.
//
// A function is created or, when Nuclio has one of its name, updated; Nuclio then
// builds its image and deploys it, and the state that it reports says how far it is.
// Which request a function was deployed for is kept with it, as an annotation, so that
// the same request deploys once however often it comes.
package dashboard

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"kiln/builder"
	"kiln/builder/nuclio"
)

const (
	defaultTimeout = 90 * time.Second
	maxAnswer      = 16 << 20
	maxMessage     = 2 << 10
)

// Config of a Client. URL is required.
type Config struct {
	// URL of the dashboard ("http://nuclio-dashboard:8070"). A user name and a password
	// in it are sent as HTTP basic authentication.
	URL string
	// Timeout of one request. Nuclio answers to a deployment once it has begun, which it
	// allows a minute for. Defaults to 90 s.
	Timeout time.Duration
	// Transport defaults to Go's own, with its proxy settings from the environment.
	Transport http.RoundTripper
}

// Client speaks to one dashboard. Safe for concurrent use.
type Client struct {
	base *url.URL
	http *http.Client
}

// New returns a Client; nothing is contacted.
func New(c Config) (*Client, error) {
	base, err := url.Parse(strings.TrimRight(c.URL, "/"))
	if err != nil || (base.Scheme != "http" && base.Scheme != "https") || base.Hostname() == "" {
		// The text may hold a password.
		return nil, errors.New("the address of the Nuclio dashboard is not an http or https URL with a host")
	}
	timeout := c.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	return &Client{base: base, http: &http.Client{Timeout: timeout, Transport: c.Transport}}, nil
}

// Secrets are the values of the configuration that must not be shown.
func (c *Client) Secrets() []string {
	if password, ok := c.base.User.Password(); ok {
		return []string{password}
	}
	return nil
}

// Deploy makes Nuclio deploy f for the request, once however often it is called, and
// returns how far Nuclio is. It does not wait for the end: call it again until the
// status is Done. While Nuclio is at work for another request it waits for that; a
// request that another one has overtaken gets the state of the function as it is now.
//
// Errors are of KindCommandFailed when Nuclio could not build or deploy the function
// (the status has its log), of KindInvalidRequest when it refuses the configuration or
// the name is taken by another project, and otherwise of KindUnavailable.
func (c *Client) Deploy(ctx context.Context, requestID string, f nuclio.Function) (nuclio.Status, error) {
	op := "deploying " + f.Name + " with Nuclio"
	status, err := c.deploy(ctx, requestID, f)
	if err == nil {
		return status, nil
	}
	if fault, ok := errors.AsType[*builder.Error](err); ok {
		return status, &builder.Error{Kind: fault.Kind, Op: op, Err: fault.Err}
	}
	return status, &builder.Error{Kind: builder.KindUnavailable, Op: op, Err: err}
}

func (c *Client) deploy(ctx context.Context, requestID string, f nuclio.Function) (nuclio.Status, error) {
	found, err := c.get(ctx, f)
	if err != nil {
		return nuclio.Status{}, err
	}
	switch {
	case found == nil:
		if err := c.ensureProject(ctx, f); err != nil {
			return nuclio.Status{}, err
		}
		return nuclio.Status{}, c.put(ctx, http.MethodPost, "/api/functions", f, []string{mark(requestID)})
	case found.project() != f.Project:
		return nuclio.Status{}, builder.Errorf(builder.KindInvalidRequest, "",
			"metadata.name: Nuclio has a function of this name in project %.80q; choose another name", found.project())
	case slices.Contains(found.requests(), mark(requestID)):
		return found.status()
	case found.provisioning():
		return nuclio.Status{State: found.Status.State + " for another request"}, nil
	default:
		requests := append([]string{mark(requestID)}, found.requests()...)
		return nuclio.Status{}, c.put(ctx, http.MethodPut, "/api/functions/"+url.PathEscape(f.Name), f, requests)
	}
}

// get returns nil when Nuclio has no such function.
func (c *Client) get(ctx context.Context, f nuclio.Function) (*function, error) {
	// Not x-nuclio-project-name, which would hide a function of another project.
	code, answer, err := c.do(ctx, http.MethodGet, "/api/functions/"+url.PathEscape(f.Name), f, nil)
	switch {
	case err != nil:
		return nil, err
	case code == http.StatusNotFound:
		return nil, nil
	case code != http.StatusOK:
		return nil, refused("reading the function", code, answer)
	}
	found := &function{}
	if err := json.Unmarshal(answer, found); err != nil || found.Metadata.Name == "" {
		return nil, errors.New("the dashboard did not answer with a function; is this the address of a Nuclio dashboard?")
	}
	return found, nil
}

// ensureProject creates the project where Nuclio has none, as MLRun does.
func (c *Client) ensureProject(ctx context.Context, f nuclio.Function) error {
	code, answer, err := c.do(ctx, http.MethodGet, "/api/projects/"+url.PathEscape(f.Project), f, nil)
	if err != nil || code == http.StatusOK {
		return err
	}
	if code != http.StatusNotFound {
		return refused("reading the project", code, answer)
	}
	metadata := map[string]any{"name": f.Project}
	if f.Namespace != "" {
		metadata["namespace"] = f.Namespace
	}
	code, answer, err = c.do(ctx, http.MethodPost, "/api/projects", f, map[string]any{"metadata": metadata, "spec": map[string]any{}})
	if err != nil || code < 300 || code == http.StatusConflict {
		return err
	}
	return refused("creating the project", code, answer)
}

// put sends the configuration, with the requests in a copy of its metadata.
func (c *Client) put(ctx context.Context, method, path string, f nuclio.Function, requests []string) error {
	code, answer, err := c.do(ctx, method, path, f, annotated(f.Config, requests))
	if err != nil || code == http.StatusAccepted || code == http.StatusOK || code == http.StatusNoContent {
		return err
	}
	return refused("sending the function", code, answer)
}

func annotated(config map[string]any, requests []string) map[string]any {
	config = maps.Clone(config)
	metadata, _ := config["metadata"].(map[string]any)
	metadata = maps.Clone(metadata)
	annotations := map[string]any{}
	if old, ok := metadata["annotations"].(map[string]any); ok {
		annotations = maps.Clone(old)
	}
	annotations[annotation] = strings.Join(requests[:min(len(requests), maxRequests)], " ")
	metadata["annotations"], config["metadata"] = annotations, metadata
	return config
}

// do sends one request and reads the whole answer.
func (c *Client) do(ctx context.Context, method, path string, f nuclio.Function, body any) (code int, answer []byte, err error) {
	var content io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return 0, nil, fmt.Errorf("encode the function: %w", err)
		}
		content = bytes.NewReader(raw)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.base.String()+path, content)
	if err != nil {
		return 0, nil, fmt.Errorf("make a request: %w", err)
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("X-Nuclio-Project-Name", f.Project)
	}
	if f.Namespace != "" {
		request.Header.Set("X-Nuclio-Function-Namespace", f.Namespace)
		request.Header.Set("X-Nuclio-Project-Namespace", f.Namespace)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return 0, nil, fmt.Errorf("read the dashboard's answer: %w", err)
	}
	return response.StatusCode, answer, nil
}

// refused makes an error of an answer: what the request says is wrong is the user's to
// correct; everything else, a missing permission or a conflict with another update
// too, is not.
func refused(doing string, code int, answer []byte) error {
	kind := builder.KindUnavailable
	if code == http.StatusBadRequest || code == http.StatusUnprocessableEntity {
		kind = builder.KindInvalidRequest
	}
	return builder.Errorf(kind, "", "%s: the dashboard answered %d %s%s", doing, code, http.StatusText(code), message(answer))
}

// message is what the dashboard says about an error.
func message(answer []byte) string {
	var body struct{ Error string }
	text := strings.TrimSpace(string(answer))
	if json.Unmarshal(answer, &body) == nil {
		text = body.Error
	}
	if text == "" {
		return ""
	}
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage], "") + " …"
	}
	return ": " + text
}
