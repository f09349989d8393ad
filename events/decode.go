package events

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/url"
	"regexp"
	"strings"
	"time"

	"kiln/schemas"
)

// MaxData is the largest message that is read, in bytes.
const MaxData = 1 << 20

// reservedID begins ids that are derived from a stream's sequence.
const reservedID = "seq:"

// https://www.w3.org/TR/trace-context/#traceparent-header
var validTraceParent = regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// DecodeError says why a message is not a valid event.
type DecodeError struct {
	Err error
	// Violations lists every place where the message breaks its schema.
	Violations []Violation
	// NotJSON is true when the message is not JSON at all.
	NotJSON bool
}

// Error returns the cause.
func (e *DecodeError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *DecodeError) Unwrap() error { return e.Err }

func invalid(format string, args ...any) error { return &DecodeError{Err: fmt.Errorf(format, args...)} }

// Decode reads a message: CloudEvents in structured or binary mode, for what requesters
// publish (see Type.Asked) also the bare data object, and for requests a bare MLRun
// function object. The type is that of the subject, whatever its prefix. The
// data is checked against its schema. The error is a *DecodeError; the event then
// still carries the best known id, type and time, and of a request what could be
// read of its function.
func Decode(m Message) (Event, error) {
	e := Event{ID: headerID(m), Time: m.Time, Type: typeOf(m.Subject), TraceParent: header(m, headerTraceParent), TraceState: header(m, headerTraceState)}
	if len(m.Data) > MaxData {
		return e.partial(m, nil), invalid("the message has %d bytes; at most 1 MiB is read", len(m.Data))
	}
	data, err := e.unwrap(m)
	if !validTraceParent.MatchString(e.TraceParent) {
		e.TraceParent, e.TraceState = "", ""
	}
	if err == nil {
		err = e.takeID(m)
	}
	if err == nil {
		err = e.read(data)
	}
	if err != nil {
		return e.partial(m, data), err
	}
	return e, nil
}

// headerID is the id that the headers give, which is known even when the message
// cannot be read.
func headerID(m Message) string {
	if header(m, "ce-specversion") != "" {
		return header(m, "ce-id")
	}
	return header(m, headerMsgID)
}

// typeOf reads the type off the end of a subject, whatever its prefix.
func typeOf(subject string) Type {
	for _, t := range Types() {
		if subject == string(t) || strings.HasSuffix(subject, "."+string(t)) {
			return t
		}
	}
	return TypeBuildRequested
}

// unwrap takes the envelope off and notes its attributes; it returns the data.
func (e *Event) unwrap(m Message) (json.RawMessage, error) {
	if version := header(m, "ce-specversion"); version != "" {
		return e.unwrapBinary(m, version)
	}
	if err := wellFormed(m.Data); err != nil {
		return nil, &DecodeError{Err: fmt.Errorf("the message is not JSON: %w", err), NotJSON: true}
	}
	var probe map[string]json.RawMessage
	if err := json.Unmarshal(m.Data, &probe); err != nil {
		return nil, invalid("the message must be a JSON object")
	}
	media, _, _ := mime.ParseMediaType(header(m, headerContentType))
	if _, ok := probe["specversion"]; ok || media == contentStructured {
		return e.unwrapStructured(m.Data)
	}
	switch e.Type {
	case TypeBuildRequested, TypeRunRequested:
	case TypeBuildCancel, TypeRunCancel:
		return m.Data, nil
	default:
		return m.Data, invalid("%s must be a CloudEvent", e.Type)
	}
	_, isRequest := probe["function"]
	_, hasKind := probe["kind"]
	_, hasSpec := probe["spec"]
	if !isRequest && hasKind && hasSpec {
		return json.RawMessage(`{"function":` + string(m.Data) + `}`), nil
	}
	return m.Data, nil
}

func (e *Event) unwrapStructured(raw []byte) (json.RawMessage, error) {
	var env envelope
	loose := struct {
		ID   string          `json:"id"`
		Data json.RawMessage `json:"data"`
	}{}
	// The id is wanted even when the envelope is not valid.
	_ = json.Unmarshal(raw, &loose)
	e.ID = loose.ID
	if err := schemas.Validate("cloudevent", raw); err != nil {
		return loose.Data, schemaError("the CloudEvents envelope is not valid", err)
	}
	if err := json.Unmarshal(raw, &env); err != nil {
		return loose.Data, invalid("the CloudEvents envelope is not valid: %w", err)
	}
	e.Source = env.Source
	if env.Time != nil {
		e.Time = *env.Time
	}
	if env.TraceParent != "" {
		e.TraceParent, e.TraceState = env.TraceParent, env.TraceState
	}
	if err := e.checkType(env.Type); err != nil {
		return env.Data, err
	}
	if err := checkContent(env.DataContentType); err != nil {
		return env.Data, err
	}
	if env.DataBase64 != nil {
		data, err := base64.StdEncoding.DecodeString(*env.DataBase64)
		if err != nil {
			return nil, invalid("data_base64 is not base64: %w", err)
		}
		return data, notJSON(data)
	}
	if len(env.Data) == 0 {
		return nil, invalid("the CloudEvent has no data")
	}
	return env.Data, nil
}

func (e *Event) unwrapBinary(m Message, version string) (json.RawMessage, error) {
	attribute := func(name string) string {
		value := header(m, "ce-"+name)
		// The NATS binding percent-encodes what a header cannot carry.
		if plain, err := url.PathUnescape(value); err == nil {
			return plain
		}
		return value
	}
	e.ID, e.Source = attribute("id"), attribute("source")
	if at, err := time.Parse(time.RFC3339Nano, attribute("time")); err == nil {
		e.Time = at
	}
	if trace := attribute("traceparent"); trace != "" {
		e.TraceParent, e.TraceState = trace, attribute("tracestate")
	}
	switch {
	case version != "1.0":
		return m.Data, invalid("CloudEvents version %.20q is not 1.0", version)
	case e.Source == "":
		return m.Data, invalid("the CloudEvent has no source (header ce-source)")
	}
	if err := e.checkType(attribute("type")); err != nil {
		return m.Data, err
	}
	if err := checkContent(header(m, headerContentType)); err != nil {
		return m.Data, err
	}
	return m.Data, notJSON(m.Data)
}

func (e *Event) checkType(typ string) error {
	if typ != e.Type.CloudEvent() && typ != string(e.Type) {
		return invalid("CloudEvents type %.80q is not %s", typ, e.Type.CloudEvent())
	}
	return nil
}

// checkContent refuses data that says it is something else than JSON.
func checkContent(contentType string) error {
	media, _, err := mime.ParseMediaType(contentType)
	if contentType == "" || (err == nil && (media == "application/json" || strings.HasSuffix(media, "+json"))) {
		return nil
	}
	return invalid("content type %.80q is not JSON", contentType)
}

func notJSON(data []byte) error {
	if err := wellFormed(data); err != nil {
		return &DecodeError{Err: fmt.Errorf("the data is not JSON: %w", err), NotJSON: true}
	}
	return nil
}

// takeID settles the id of the event: its own, or the fallback if it has none.
func (e *Event) takeID(m Message) error {
	switch {
	case e.ID == "" && e.Type.Asked():
		e.ID = m.FallbackID
	case !e.usableID():
		return invalid("the id %.80q must be 1 to 200 printable ASCII characters without spaces", e.ID)
	case strings.HasPrefix(e.ID, reservedID) && e.Type.Asked():
		return invalid("the id %.80q begins with %q, which is reserved", e.ID, reservedID)
	}
	return nil
}

// usableID reports whether the id can be one. An emitted event's has a requester's in it.
func (e *Event) usableID() bool {
	limit := 200
	if !e.Type.Asked() {
		limit += len(".build.completed.") + 19
	}
	// No regular expression: one takes its part of every program's start.
	unprintable := strings.ContainsFunc(e.ID, func(r rune) bool { return r < '!' || r > '~' })
	return e.ID != "" && len(e.ID) <= limit && !unprintable
}

// read checks the data against its schema and decodes it.
func (e *Event) read(data json.RawMessage) error {
	if err := schemas.Validate(string(e.Type), data); err != nil {
		return schemaError("the data of "+string(e.Type)+" is not valid", err)
	}
	into := e.Type.data()
	if err := json.Unmarshal(data, into); err != nil {
		return invalid("the data of %s cannot be read: %w", e.Type, err)
	}
	e.Data = into
	return nil
}

// data returns a pointer to an empty value of what the event carries.
func (t Type) data() any {
	switch t {
	case TypeBuildCancel:
		return &BuildCancel{}
	case TypeBuildQueued:
		return &BuildQueued{}
	case TypeBuildStarted:
		return &BuildStarted{}
	case TypeBuildCompleted:
		return &BuildCompleted{}
	case TypeBuildFailed:
		return &BuildFailed{}
	case TypeBuildCanceled:
		return &BuildCanceled{}
	case TypeBuildDead:
		return &BuildDead{}
	case TypeRunRequested:
		return &RunRequest{}
	case TypeRunWaiting:
		return &RunWaiting{}
	case TypeRunStarted:
		return &RunStarted{}
	case TypeRunCompleted:
		return &RunCompleted{}
	case TypeRunFailed:
		return &RunFailed{}
	case TypeRunCanceled:
		return &RunCanceled{}
	case TypeRunCancel:
		return &RunCancel{}
	default: // also what somebody published on a subject of no type
		return &BuildRequest{}
	}
}

// partial is what is known of an event that is not valid: a usable id, and of a
// request its function object.
func (e Event) partial(m Message, data json.RawMessage) Event {
	if !e.usableID() || strings.HasPrefix(e.ID, reservedID) {
		e.ID = m.FallbackID
	}
	e.Data = nil
	var request struct {
		Function json.RawMessage `json:"function"`
	}
	// A message that is no object has no function.
	_ = json.Unmarshal(data, &request)
	switch e.Type {
	case TypeBuildRequested:
		e.Data = &BuildRequest{Function: request.Function}
	case TypeRunRequested:
		e.Data = &RunRequest{Function: request.Function}
	default:
	}
	return e
}

func schemaError(what string, err error) error {
	broken, ok := errors.AsType[*schemas.Error](err)
	if !ok {
		return invalid("%s: %w", what, err)
	}
	d := &DecodeError{Err: fmt.Errorf("%s: %w", what, err)}
	for _, v := range broken.Violations {
		d.Violations = append(d.Violations, Violation(v))
	}
	return d
}

// header returns the first value of a header, whatever the case of its name.
func header(m Message, name string) string {
	if v := m.Header[name]; len(v) > 0 {
		return v[0]
	}
	for key, v := range m.Header {
		if strings.EqualFold(key, name) && len(v) > 0 {
			return v[0]
		}
	}
	return ""
}

// wellFormed checks that raw is one JSON value, nested at most 100 deep, in which
// no object has a key twice.
func wellFormed(raw []byte) error {
	const maxDepth = 100
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	type frame struct {
		keys  map[string]bool // nil in an array
		isKey bool
	}
	var stack []frame
	for first := true; first || len(stack) > 0; first = false {
		token, err := decoder.Token()
		if err != nil {
			return fmt.Errorf("at byte %d: %w", decoder.InputOffset(), err)
		}
		var top *frame
		if len(stack) > 0 {
			top = &stack[len(stack)-1]
		}
		if top != nil && top.keys != nil {
			key, isText := token.(string)
			if top.isKey && isText {
				if top.keys[key] {
					return fmt.Errorf("key %.80q stands twice in one object", key)
				}
				top.keys[key] = true
			}
			top.isKey = !top.isKey
		}
		switch token {
		case json.Delim('{'):
			stack = append(stack, frame{keys: map[string]bool{}, isKey: true})
		case json.Delim('['):
			stack = append(stack, frame{})
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:len(stack)-1]
			continue
		}
		if len(stack) > maxDepth {
			return fmt.Errorf("it is nested more than %d deep", maxDepth)
		}
	}
	if rest := bytes.TrimSpace(raw[decoder.InputOffset():]); len(rest) > 0 {
		return fmt.Errorf("there is more text after its end: %.20q", rest)
	}
	return nil
}

// Prepare gets ready what Decode checks events of the given types with, which takes some
// milliseconds and is done when it is needed otherwise. Safe for concurrent use.
func Prepare(types ...Type) error {
	names := append(make([]string, 0, len(types)+1), "cloudevent")
	for _, t := range types {
		names = append(names, string(t))
	}
	return schemas.Prepare(names...)
}
