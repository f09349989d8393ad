// Command image assembles Kiln's own image and that of the Kaniko executor from static
// binaries, without a container engine: what deploy/Dockerfile makes, byte for byte the
// same at every run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

const usage = `usage:
  image certificates                                    print the certificates that images trust
  image kiln   -binary OS/ARCH=KILN,KILND... [options]  assemble Kiln's image
  image kaniko -binary OS/ARCH=FILE... [options]        assemble the executor's image
options:
  -o FILE.tar   write an OCI archive, for kind, ctr, skopeo and docker load
  -name REF     name of the image in the archive
  -push REF     push it, with the credentials of Docker's configuration
  -insecure     push by plain HTTP`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

// binaries are the paths of static executables by platform, in the order of the flags.
type binaries []binary

type binary struct {
	platform *v1.Platform
	paths    []string
}

// String implements flag.Value.
func (b *binaries) String() string { return fmt.Sprint(len(*b), " binaries") }

// Set implements flag.Value.
func (b *binaries) Set(text string) error {
	platform, files, ok := strings.Cut(text, "=")
	p, err := v1.ParsePlatform(platform)
	if !ok || err != nil || p.OS == "" || p.Architecture == "" {
		return fmt.Errorf("%q is not OS/ARCH=FILE", text)
	}
	paths := strings.Split(files, ",")
	for i, path := range paths {
		paths[i] = filepath.Clean(path)
	}
	*b = append(*b, binary{platform: p, paths: paths})
	return nil
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	if args[0] == "certificates" {
		_, err := out.Write(certificates())
		return err
	}
	recipe, ok := recipes()[args[0]]
	if !ok {
		return errors.New(usage)
	}
	fs := flag.NewFlagSet(args[0], flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	var from binaries
	fs.Var(&from, "binary", "")
	file, title := fs.String("o", "", ""), fs.String("name", args[0]+":latest", "")
	target, insecure := fs.String("push", "", ""), fs.Bool("insecure", false, "")
	if err := fs.Parse(args[1:]); err != nil {
		return fmt.Errorf("%w\n%s", err, usage)
	}
	if len(from) == 0 || fs.NArg() > 0 || *file == "" && *target == "" {
		return errors.New(usage)
	}
	index, err := assemble(recipe, from)
	if err != nil {
		return err
	}
	if *file != "" {
		if err := writeArchive(*file, *title, index); err != nil {
			return fmt.Errorf("write %s: %w", *file, err)
		}
	}
	if *target != "" {
		if err := push(ctx, *target, *insecure, index); err != nil {
			return fmt.Errorf("push %s: %w", *target, err)
		}
	}
	digest, err := index.Digest()
	if err != nil {
		return fmt.Errorf("digest of the image: %w", err)
	}
	fmt.Fprintln(out, digest)
	return nil
}

func push(ctx context.Context, target string, insecure bool, index v1.ImageIndex) error {
	var opts []name.Option
	if insecure {
		opts = append(opts, name.Insecure)
	}
	ref, err := name.ParseReference(target, opts...)
	if err != nil {
		return err
	}
	return remote.WriteIndex(ref, index, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain))
}
