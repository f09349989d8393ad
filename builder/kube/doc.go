// Package kube is a builder.Engine that runs the Kaniko executor in Kubernetes Jobs.
//
// A build is one Job with one Pod: its init container "context" is Kiln itself, which
// writes Dockerfile, context and source into a shared volume (Prepare); its container
// "kaniko" is the executor. What a Pod needs to know and nobody else may see is in one
// Secret, which belongs to the Job from its first moment and goes with it: the engine
// may create Secrets and never read one.
//
// The Job is where the truth is. A Job that is running, or that has ended and that no
// worker has collected, is joined by any worker that gets to build the same content for
// the same destination, in whatever attempt; collecting a result deletes the Job. So a
// worker may stop or die at any time: the Job goes on, and its result is found.
//
// One pair of informers for all builds watches Jobs and Pods. Every change makes a
// build look at the state as a whole (view) and decide anew; no decision rests on having
// seen an event. What is missing is never taken for success.
//
// As in any Kaniko Pod, commands of the build are root in the executor's own container:
// they can read the credentials and secrets of their build. Those are no more than the
// build's registries need, but a command of one that may push can push too.
package kube
