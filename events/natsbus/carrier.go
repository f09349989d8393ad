package natsbus

import (
	"maps"
	"slices"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/propagation"
)

// Carrier carries trace context in NATS headers. Keys keep their case, as NATS does
// and other clients expect ("traceparent", not "Traceparent").
type Carrier nats.Header

var _ propagation.TextMapCarrier = Carrier(nil)

// Get returns the first value of key.
func (c Carrier) Get(key string) string { return nats.Header(c).Get(key) }

// Set replaces the values of key.
func (c Carrier) Set(key, value string) { nats.Header(c).Set(key, value) }

// Keys lists all keys in order.
func (c Carrier) Keys() []string { return slices.Sorted(maps.Keys(c)) }
