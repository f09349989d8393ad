package natsbus

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// DriftError says where the server differs from the topology.
type DriftError struct {
	Differences []Difference
}

// Difference is one field of one object.
type Difference struct {
	// Object is "stream BUILD", "consumer build-workers" or "bucket KILN_LEDGER".
	Object string `json:"object"`
	// Field is its name in words: "max age".
	Field string `json:"field"`
	// Want is what the topology says, Have what the server has.
	Want string `json:"want"`
	Have string `json:"have"`
	// Repair is the command that gives the server what the topology says.
	Repair string `json:"repair"`
}

// String is one line without the repair.
func (d Difference) String() string {
	return fmt.Sprintf("%s: %s is %s, the configuration says %s", d.Object, d.Field, d.Have, d.Want)
}

// Error lists the differences and how to repair them.
func (e *DriftError) Error() string {
	var b strings.Builder
	b.WriteString("the server differs from the configuration, and nothing was changed:")
	for _, d := range e.Differences {
		fmt.Fprintf(&b, "\n  %s\n    to repair: %s", d, d.Repair)
	}
	b.WriteString("\nDo that, or adapt the configuration to the server, and run provision again.")
	return b.String()
}

// differ collects the differences of one object.
type differ struct {
	object string
	// edit is the command that changes the object, recreate what has to be done
	// where that cannot change a field.
	edit, recreate string
	found          []Difference
}

// compare notes a difference. Flag is what edit takes, "" if it cannot change the
// field.
func (d *differ) compare(field, flag string, want, have any) {
	if want == have {
		return
	}
	w, h := fmt.Sprint(want), fmt.Sprint(have)
	repair := d.recreate
	if flag != "" {
		repair = d.edit + " --" + flag
		if strings.HasSuffix(flag, "=") {
			repair += strings.ReplaceAll(w, " ", "")
		}
	}
	d.found = append(d.found, Difference{Object: d.object, Field: field, Want: w, Have: h, Repair: repair})
}

// streamDrift compares all that decides what is kept, for how long, and how safely.
// Harmless settings are the operator's: placement, compression, the size of the log
// stream.
func streamDrift(object string, want, have jetstream.StreamConfig) []Difference {
	d := differ{
		object: object, edit: "nats stream edit " + want.Name,
		recreate: "cannot be edited: `nats stream backup` and `nats stream rm " + want.Name + "`, then provision",
	}
	d.compare("subjects", "subjects=", strings.Join(want.Subjects, ","), strings.Join(have.Subjects, ","))
	d.compare("retention", "", want.Retention, have.Retention)
	d.compare("storage", "", want.Storage, have.Storage)
	d.compare("replicas", "replicas=", want.Replicas, have.Replicas)
	d.compare("max age", "max-age=", want.MaxAge, have.MaxAge)
	d.compare("duplicate window", "dupe-window=", want.Duplicates, have.Duplicates)
	d.compare("max messages", "max-msgs=", want.MaxMsgs, have.MaxMsgs)
	d.compare("max messages per subject", "max-msgs-per-subject=", want.MaxMsgsPerSubject, have.MaxMsgsPerSubject)
	if want.MaxBytes != 0 { // 0 leaves it to the operator
		d.compare("max bytes", "max-bytes=", want.MaxBytes, have.MaxBytes)
	}
	d.compare("discard policy", "discard="+strings.ToLower(strings.TrimPrefix(want.Discard.String(), "Discard")), want.Discard, have.Discard)
	d.compare("acknowledges messages", "ack", !want.NoAck, !have.NoAck)
	d.compare("sealed", "", want.Sealed, have.Sealed)
	d.compare("persist mode", "", want.PersistMode, have.PersistMode)
	d.compare("is a mirror", "", want.Mirror != nil, have.Mirror != nil)
	d.compare("sources", "", len(want.Sources), len(have.Sources))
	d.compare("transforms subjects", "", want.SubjectTransform != nil, have.SubjectTransform != nil)
	if want.AllowMsgTTL {
		d.compare("message TTL", "", want.AllowMsgTTL, have.AllowMsgTTL)
		d.compare("marker TTL", "subject-del-markers-ttl=", want.SubjectDeleteMarkerTTL, have.SubjectDeleteMarkerTTL)
	}
	if want.Replicas > 1 && !strings.HasSuffix(want.Name, "_LOG") {
		d.compare("direct reads", "no-allow-direct", want.AllowDirect, have.AllowDirect)
	}
	return d.found
}

func consumerDrift(stream string, want, have jetstream.ConsumerConfig) []Difference {
	d := differ{
		object: "consumer " + want.Name, edit: "nats consumer edit " + stream + " " + want.Name,
		recreate: "cannot be edited: wait until no request is open, `nats consumer rm " + stream + " " + want.Name + "`, then provision",
	}
	d.compare("filter", "filter=", filters(want), filters(have))
	d.compare("deliver policy", "", want.DeliverPolicy, have.DeliverPolicy)
	d.compare("ack policy", "", want.AckPolicy, have.AckPolicy)
	d.compare("ack wait", "wait=", want.AckWait, have.AckWait)
	d.compare("backoff steps", "backoff=none", 0, len(have.BackOff))
	d.compare("max deliver", "max-deliver=", want.MaxDeliver, have.MaxDeliver)
	d.compare("max ack pending", "max-pending=", want.MaxAckPending, have.MaxAckPending)
	d.compare("headers only", "no-headers-only", want.HeadersOnly, have.HeadersOnly)
	d.compare("memory storage", "", want.MemoryStorage, have.MemoryStorage)
	d.compare("inactive threshold", "", time.Duration(0), have.InactiveThreshold)
	d.compare("pushes to", "", "", have.DeliverSubject)
	return d.found
}

// filters are the subjects of a consumer, wherever they stand.
func filters(c jetstream.ConsumerConfig) string {
	all := slices.Clone(c.FilterSubjects)
	if c.FilterSubject != "" {
		all = append(all, c.FilterSubject)
	}
	return strings.Join(all, ",")
}
