// Package worker takes build.requested messages and brings each to exactly one
// terminal event. It translates between events (wire) and builder (domain), and
// knows queue, ledger and log store by the small interfaces in ports.go only.
package worker
