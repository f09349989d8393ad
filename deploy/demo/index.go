package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"html"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

// runIndex serves the demo's wheels until ctx ends. The first line it prints is the
// URL for pip's --index-url.
func runIndex(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("index", flag.ContinueOnError)
	addr := fs.String("addr", "127.0.0.1:0", "")
	if _, err := parse(fs, args, 0); err != nil {
		return err
	}
	handler, err := newIndex(demoWheels())
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", *addr)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	fmt.Fprintf(out, "http://%s/simple/\n", listener.Addr())
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// newIndex returns a handler of the simple repository API: /simple/ lists projects,
// /simple/NAME/ lists files with their digests, /files/NAME is a file.
func newIndex(wheels []wheel) (http.Handler, error) {
	projects := map[string][]string{}
	mux := http.NewServeMux()
	for _, w := range wheels {
		data, err := w.bytes()
		if err != nil {
			return nil, err
		}
		file := "/files/" + w.filename()
		projects[w.name] = append(projects[w.name],
			fmt.Sprintf("%s#sha256=%x", file, sha256.Sum256(data)))
		mux.HandleFunc("GET "+file, func(rw http.ResponseWriter, r *http.Request) {
			http.ServeContent(rw, r, w.filename(), time.Time{}, bytes.NewReader(data))
		})
	}
	names := slices.Sorted(maps.Keys(projects))
	links := make([]string, 0, len(names))
	for _, name := range names {
		links = append(links, "/simple/"+name+"/")
		mux.HandleFunc("GET /simple/"+name+"/{$}", listing(projects[name]))
	}
	mux.HandleFunc("GET /simple/{$}", listing(links))
	return mux, nil
}

// listing answers with one link per line; its text is the last path element.
func listing(links []string) http.HandlerFunc {
	var page strings.Builder
	page.WriteString("<!DOCTYPE html>\n<html><body>\n")
	for _, link := range links {
		path, _, _ := strings.Cut(link, "#")
		path = strings.TrimSuffix(path, "/")
		fmt.Fprintf(&page, "<a href=\"%s\">%s</a>\n", html.EscapeString(link), html.EscapeString(path[strings.LastIndexByte(path, '/')+1:]))
	}
	page.WriteString("</body></html>\n")
	return func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(rw, page.String())
	}
}

// runReachable ends without error if anything but a server error answers.
func runReachable(ctx context.Context, args []string, _ io.Writer) error {
	rest, err := parse(flag.NewFlagSet("reachable", flag.ContinueOnError), args, 1)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, rest[0], http.NoBody)
	if err != nil {
		return fmt.Errorf("reachable: %w", err)
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("reachable: %w", err)
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode >= http.StatusInternalServerError {
		return fmt.Errorf("%s answers %s", rest[0], answer.Status)
	}
	return nil
}
