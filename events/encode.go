package events

import (
	"encoding/json"
	"fmt"
	"time"

	"kiln/schemas"
)

// Header names. NATS keeps their case.
const (
	headerMsgID       = "Nats-Msg-Id"
	headerContentType = "content-type"
	headerTraceParent = "traceparent"
	headerTraceState  = "tracestate"

	contentStructured = "application/cloudevents+json"
)

// envelope is a CloudEvent in structured mode, with the attributes that Kiln uses.
type envelope struct {
	SpecVersion     string          `json:"specversion"`
	ID              string          `json:"id"`
	Source          string          `json:"source"`
	Type            string          `json:"type"`
	Time            *time.Time      `json:"time,omitempty"`
	DataContentType string          `json:"datacontenttype,omitempty"`
	DataSchema      string          `json:"dataschema,omitempty"`
	TraceParent     string          `json:"traceparent,omitempty"`
	TraceState      string          `json:"tracestate,omitempty"`
	Data            json.RawMessage `json:"data,omitempty"`
	DataBase64      *string         `json:"data_base64,omitempty"`
}

// Encode returns the event as a CloudEvent in structured mode. The same event
// always gives the same bytes. The header carries the id as Nats-Msg-Id and the
// trace context, if there is one.
func Encode(e Event, s Subjects) (Message, error) {
	data, err := json.Marshal(e.Data)
	if err != nil {
		return Message{}, fmt.Errorf("encode data of %s: %w", e.Type, err)
	}
	at := e.Time.UTC()
	raw, err := json.Marshal(envelope{
		SpecVersion: "1.0", ID: e.ID, Source: e.Source, Type: e.Type.CloudEvent(), Time: &at,
		DataContentType: "application/json", DataSchema: schemas.ID(string(e.Type)),
		TraceParent: e.TraceParent, TraceState: e.TraceState, Data: data,
	})
	if err != nil {
		return Message{}, fmt.Errorf("encode %s: %w", e.Type, err)
	}
	header := map[string][]string{headerMsgID: {e.ID}, headerContentType: {contentStructured}}
	if e.TraceParent != "" {
		header[headerTraceParent] = []string{e.TraceParent}
	}
	if e.TraceState != "" {
		header[headerTraceState] = []string{e.TraceState}
	}
	return Message{Subject: s.Of(e.Type), Header: header, Data: raw, Time: at}, nil
}
