package run

import _ "embed" // for the bootstrap

// bootstrap is the program that calls a handler in an image without mlrun. What it does
// it reads from the task's file; nothing is put into its text.
//
//go:embed bootstrap.py
var bootstrap string
