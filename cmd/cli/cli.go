// Package cli is what Kiln's two programs share: kiln, the client, and kilnd, which runs
// and plans builds. Users see one program, kiln: see Parser.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"syscall"

	"github.com/alecthomas/kong"
	"github.com/rs/zerolog"
	"golang.org/x/term"

	"kiln/builder"
)

// Exit codes.
const (
	ExitOK           = 0
	ExitFailed       = 1 // a build failed, or the command could not do its work
	ExitUsage        = 2 // bad flags, configuration or function file
	ExitNoConnection = 3 // no NATS server
)

// Streams are what a command talks through.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// ExitError carries an exit code; a nil cause has been reported already.
type ExitError struct {
	Code  int
	Cause error
}

// Error returns the cause's text.
func (e *ExitError) Error() string {
	if e.Cause == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Cause.Error()
}

// Unwrap returns the cause.
func (e *ExitError) Unwrap() error { return e.Cause }

// Usage makes err end the program with ExitUsage.
func Usage(err error) error { return &ExitError{Code: ExitUsage, Cause: err} }

// Globals are the flags of every command.
type Globals struct {
	ConfigFile kong.ConfigFlag  `name:"config" env:"KILN_CONFIG" placeholder:"FILE" help:"YAML file with the settings of the configuration table."`
	LogLevel   string           `default:"info" enum:"debug,info,warn,error" help:"Least level of log lines: debug, info, warn or error."`
	LogFormat  string           `default:"auto" enum:"auto,console,json" help:"Form of log lines; auto is console on a terminal and json elsewhere."`
	Version    kong.VersionFlag `env:"-" short:"v" help:"Print versions and exit."`
}

// Logger writes to the error stream.
func (g *Globals) Logger(s Streams) zerolog.Logger {
	level, err := zerolog.ParseLevel(g.LogLevel)
	if err != nil {
		level = zerolog.InfoLevel
	}
	out := s.Err
	if g.LogFormat == "console" || (g.LogFormat == "auto" && IsTerminal(s.Err)) {
		out = zerolog.ConsoleWriter{Out: s.Err, TimeFormat: "15:04:05", NoColor: !colours(s.Err)}
	}
	return zerolog.New(out).Level(level).With().Timestamp().Logger()
}

// IsTerminal reports whether somebody sees what is written to w.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// colours follows https://no-color.org.
func colours(w io.Writer) bool { return os.Getenv("NO_COLOR") == "" && IsTerminal(w) }

// exited is the panic that ends parsing after --help or --version.
type exited int

// Parser returns the parser of a program's commands, a pointer to a struct for kong. Its
// name is kiln in both programs. Help of commands is ${help_NAME}.
func Parser(commands any, s Streams, opts ...kong.Option) (*kong.Kong, error) {
	return kong.New(commands, append([]kong.Option{
		kong.Name("kiln"),
		kong.Description("Kiln turns ML function specs into container images. Start with `kiln up`."),
		kong.Writers(s.Out, s.Err), kong.Exit(func(status int) { panic(exited(status)) }),
		kong.UsageOnError(), kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 110}),
		kong.DefaultEnvars("KILN"),
		kong.Vars{"version": versions()},
		daemonHelp(),
	}, opts...)...)
}

// daemonHelp describes the commands of kilnd, which both programs list.
func daemonHelp() kong.Vars {
	return kong.Vars{
		"help_up":           "Run everything on this machine: NATS, registry and a worker.",
		"help_plan":         "Show what would be built, without building.",
		"help_worker":       "Run a worker on existing servers.",
		"help_doctor":       "Say what builds still need.",
		"help_provision":    "Create streams, consumer and ledger on a NATS server.",
		"help_context":      "Prepare a build inside its Pod.",
		"help_config_table": "Print the configuration table as Markdown.",
	}
}

// Run executes one command line and returns its exit code. The command's Run method may
// take a context.Context, Streams and *Globals.
func Run(ctx context.Context, parser *kong.Kong, args []string, s Streams, g *Globals) (code int) {
	defer func() {
		if r := recover(); r != nil {
			status, ok := r.(exited)
			if !ok {
				panic(r)
			}
			code = int(status)
		}
	}()
	if len(args) == 0 {
		args = []string{"--help"}
	}
	command, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(s.Err, "kiln: %v\n", err)
		fmt.Fprintln(s.Err, "Run `kiln --help`, or `kiln COMMAND --help`.")
		return ExitUsage
	}
	command.BindTo(ctx, (*context.Context)(nil))
	return Report(command.Run(s, g), s)
}

// Report prints an error, if there is one, and returns the exit code.
func Report(err error, s Streams) int {
	if err == nil || errors.Is(err, syscall.EPIPE) {
		return ExitOK
	}
	exit, ok := errors.AsType[*ExitError](err)
	if !ok {
		exit = &ExitError{Code: ExitFailed, Cause: err}
	}
	if exit.Cause != nil {
		fmt.Fprintf(s.Err, "kiln: %v\n", exit.Cause)
	}
	return exit.Code
}

// WriteJSON prints one indented document.
func WriteJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}

// RedactURL hides credentials in a URL.
func RedactURL(text string) string { return builder.NewRedactor().Text(text) }

// versions is what --version prints.
func versions() string {
	version, revision := "unknown", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		version = info.Main.Version
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = " " + s.Value
			}
		}
	}
	executor := builder.DefaultExecutor()
	return fmt.Sprintf("kiln %s%s, executor %s %s", version, revision, executor.Name, executor.Version)
}
