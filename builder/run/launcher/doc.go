// Package launcher is the first process of a run's container, the program kiln-init, and
// what the runners and it tell each other: a Spec on the way in, a Report on the way out.
//
// It is a program of its own, and not a command of kiln, because it is started once per
// run, inside somebody else's image: it is small, it starts in about a millisecond, and
// it depends on the standard library only.
package launcher
