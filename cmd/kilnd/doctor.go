package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"kiln/cmd/cli"
)

type doctorCmd struct {
	NATS    cli.NATSFlags `embed:"" prefix:"nats-"`
	Stream  topologyFlags `embed:"" prefix:"stream-"`
	Engine  string        `default:"sandbox" enum:"sandbox,kube" help:"Engine to check: sandbox or kube."`
	UseKube bool          `env:"-" name:"kube" help:"The same as --engine kube."`
	Kube    kubeFlags     `embed:"" prefix:"kube-"`
	File    string        `env:"-" short:"f" placeholder:"FILE" help:"Function whose base and target are checked; - is standard input. Defaults to one that leaves both to the configuration."`
	Output  string        `env:"-" short:"o" enum:"text,json" default:"text" help:"text or json."`
	buildFlags
}

// Help is shown below the flags.
func (doctorCmd) Help() string {
	return `Checks what builds need, with the settings of a worker: the NATS server and what has
to be provisioned on it, the registry and the right to push, the base image, package
indexes, and the engine. What is missing is said in words, with how to get it. Nothing
is changed. The exit code is 0 when all is there, 1 when something is missing, 3 when
no NATS server answers.

Examples:
  kiln doctor --registry-url registry.example.com/team
  kiln doctor --kube --config /etc/kiln/config/kiln.yaml
  kiln doctor -f function.yaml -o json`
}

// States of a check.
const (
	checkOK      = "ok"
	checkMissing = "missing"
	checkSkipped = "skipped"
)

// check is what became of one check.
type check struct {
	Name   string `json:"check"`
	State  string `json:"state"`
	Detail string `json:"detail"`
	// Fix is what to do about what is missing.
	Fix string `json:"fix,omitempty"`
	// noConnection says that no NATS server answers.
	noConnection bool
}

func passed(name, detail string) check {
	return check{Name: name, State: checkOK, Detail: detail}
}

func lacking(name string, err error, fix string) check {
	return check{Name: name, State: checkMissing, Detail: err.Error(), Fix: fix}
}

func skipped(name, why string) check { return check{Name: name, State: checkSkipped, Detail: why} }

// doctorTimeout bounds all checks together.
const doctorTimeout = 2 * time.Minute

// Run checks everything and reports.
func (d *doctorCmd) Run(ctx context.Context, s cli.Streams) error {
	if d.UseKube {
		d.Engine = "kube"
	}
	images, err := d.images(s)
	if err != nil {
		return err
	}
	defer images.close()
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	checks := inOrder(ctx, d.checkNATS, images.checkPush, images.checkBase, d.checkPip, d.checkEngine)
	if d.Output == "json" {
		err = cli.WriteJSON(s.Out, map[string]any{"ok": worst(checks) == cli.ExitOK, "checks": checks})
	} else {
		err = printChecks(s.Out, checks)
	}
	if code := worst(checks); err == nil && code != cli.ExitOK {
		return &cli.ExitError{Code: code}
	}
	return err
}

// inOrder runs the groups of checks at the same time and returns them in their order.
func inOrder(ctx context.Context, groups ...func(context.Context) []check) []check {
	found := make([][]check, len(groups))
	var running sync.WaitGroup
	for i, group := range groups {
		running.Go(func() { found[i] = group(ctx) })
	}
	running.Wait()
	var all []check
	for _, checks := range found {
		all = append(all, checks...)
	}
	return all
}

// worst is the exit code of the checks.
func worst(checks []check) int {
	code := cli.ExitOK
	for _, c := range checks {
		switch {
		case c.noConnection:
			return cli.ExitNoConnection
		case c.State == checkMissing:
			code = cli.ExitFailed
		}
	}
	return code
}

func printChecks(w io.Writer, checks []check) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range checks {
		// Further lines stand below the first.
		detail := strings.Split(strings.TrimSpace(c.Detail), "\n")
		fmt.Fprintf(table, "%s\t%s\t%s\n", c.State, c.Name, detail[0])
		for _, line := range detail[1:] {
			fmt.Fprintf(table, "\t\t%s\n", strings.TrimRight(line, " "))
		}
		if c.Fix != "" {
			fmt.Fprintf(table, "\t\t-> %s\n", c.Fix)
		}
	}
	return table.Flush()
}
