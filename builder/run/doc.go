// Package run says what a run of a function is: the plan that it resolves to, by
// MLRun's rules, and the Runner that executes it. It is pure.
package run
