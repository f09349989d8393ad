package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/alecthomas/kong"

	"kiln/cmd/cli"
)

type configTableCmd struct{}

// Run prints the table.
func (configTableCmd) Run(s cli.Streams) error { return writeConfigTable(s.Out) }

// writeConfigTable prints every setting of every command once, as Markdown.
func writeConfigTable(w io.Writer) error {
	var c commands
	parser, err := newParser(&c, cli.Streams{Out: w, Err: w})
	if err != nil {
		return fmt.Errorf("read the command line's model: %w", err)
	}
	fmt.Fprintln(w, "| flag | environment | file | default | meaning |\n|---|---|---|---|---|")
	seen := map[string]bool{}
	for _, command := range []string{"up", "worker", "provision"} {
		for _, node := range parser.Model.Leaves(false) {
			if node.Name == command {
				writeFlags(w, node, seen)
			}
		}
	}
	return nil
}

func writeFlags(w io.Writer, node *kong.Node, seen map[string]bool) {
	for _, group := range node.AllFlags(true) {
		for _, flag := range group {
			if seen[flag.Name] || flag.Name == "help" || flag.Name == "version" || flag.Name == "output" {
				continue
			}
			seen[flag.Name] = true
			key := strings.Replace(flag.Name, "-", ".", 1)
			if _, rest, ok := strings.Cut(key, "."); ok {
				key = strings.TrimSuffix(key, rest) + strings.ReplaceAll(rest, "-", "_")
			}
			fmt.Fprintf(w, "| `--%s` | `%s` | `%s` | %s | %s |\n", flag.Name, strings.Join(flag.Envs, "` `"), key,
				code(flag.Default), strings.ReplaceAll(flag.Help, "|", "\\|"))
		}
	}
}

func code(text string) string {
	if text == "" {
		return ""
	}
	return "`" + text + "`"
}
