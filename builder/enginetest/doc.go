// Package enginetest holds what tests of engines and of their users need: the
// conformance suite that every builder.Engine passes (Run), and Fake, an engine
// with scripted behaviour.
package enginetest
