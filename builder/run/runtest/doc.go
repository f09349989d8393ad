// Package runtest holds what tests of runners and of their users need: the conformance
// suite that every run.Runner passes (Run), and Fake, a runner without processes.
package runtest
