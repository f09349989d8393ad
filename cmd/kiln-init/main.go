// Command kiln-init is the first process of a run's container: it starts the first
// command that the image has a program for, passes signals on to it, and reports how it
// ended. The runners start it; it has no use on its own.
package main

import (
	"os"

	"kiln/builder/run/launcher"
)

func main() { os.Exit(launcher.Main(launcher.SpecFile)) }
