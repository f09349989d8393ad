// Package events is the wire format of Kiln: what a build.requested message may
// look like, what Kiln answers, on which subjects, and how both are encoded.
//
// It imports the schemas and the standard library only. Transport (NATS) is in
// events/natsbus; meaning is in the worker, which is the one place that
// translates between these types and the builder's.
package events
