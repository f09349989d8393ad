// Package trigger starts runs the moment their images exist. It takes run.requested,
// asks for the image by build.requested where one may be built, keeps what it knows in a
// compare-and-set store, hears how builds end, and lets a run.Runner execute the runs.
//
// A run that waits holds nothing: no slot, no goroutine, no message. Everything that is
// decided is stored first and takes effect afterwards, so that any trigger can go on
// where another one died; a process that was started is attached to, never started again.
package trigger
