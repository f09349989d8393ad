// Package kaniko knows the Kaniko executor and nothing else: the arguments and the
// environment that a builder.Plan means (Args, Env), what its log says (Log), and
// what an ended run was (Classify). It is pure, and shared by every engine that runs
// the executor.
//
// Values never travel as arguments: build arguments and secrets are read by the
// executor from its environment, arguments name them only.
//
// The executor and the commands of RUN write to the same stream, so no line of a
// log proves anything: a command may print what the executor prints. Therefore a
// digest is never read from a log, and a failure counts as a failed command whenever
// the log and the exit code allow that reading; output can at worst mislead its own
// author about which of his steps it was.
package kaniko
