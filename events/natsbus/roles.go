package natsbus

import (
	"fmt"
	"slices"
	"strings"

	"kiln/events"
)

// Role is what somebody does on a server that has users.
type Role string

// Roles.
const (
	// RolePublisher requests images and runs, from any NATS client, and reads nothing.
	RolePublisher Role = "publisher"
	// RoleSubscriber hears results and log lines while they are published, and
	// publishes nothing.
	RoleSubscriber Role = "subscriber"
	// RoleClient is the package events/client and the commands of kiln: it requests and
	// cancels, and reads history too. It sees the requests of others. Who may make consumers may
	// have the server deliver copies of messages to any subject: it has to be trusted
	// not to.
	RoleClient Role = "client"
	// RoleWorker takes requests, keeps ledger and backlog, and publishes what became of them.
	RoleWorker Role = "worker"
	// RoleBuild reads uploaded build contexts, and nothing else: it is for what prepares
	// builds away from the worker, the Pods of the engine kube.
	RoleBuild Role = "build"
	// RoleOperator provisions, and repairs what drifted.
	RoleOperator Role = "operator"
)

// Roles returns all roles.
func Roles() []Role {
	return []Role{RolePublisher, RoleSubscriber, RoleClient, RoleWorker, RoleBuild, RoleOperator}
}

// Permissions are subjects, with wildcards, in the server's own terms: what is denied
// is so whatever is allowed.
type Permissions struct {
	Publish, DenyPublish []string
	Subscribe            []string
}

// Permissions returns what a user in that role needs, and no more; nothing for a role
// that is none. Answers reach a user through inboxes: of publishers and builds the
// usual ones, of all others those of InboxPrefix, so that nobody listens to answers of others.
func (t Topology) Permissions(role Role) Permissions {
	t = t.withDefaults()
	switch role {
	case RolePublisher:
		return Permissions{
			Publish:   []string{t.Subjects().Of(events.TypeBuildRequested), t.Subjects().Of(events.TypeRunRequested)},
			Subscribe: []string{"_INBOX.>"},
		}
	case RoleSubscriber:
		return Permissions{Subscribe: append(t.results(), t.logs()...)}
	case RoleClient:
		return Permissions{
			Publish: slices.Concat(t.asked(), reads(t.buildStream()), reads(t.logStream()),
				reads(t.runStream()), reads(t.runLogStream()), t.uploads()),
			// Readers' consumers have random names. These belong to the workers.
			DenyPublish: append(t.changeConsumers(), t.eachConsumer("CONSUMER.MSG.NEXT")...),
			Subscribe:   slices.Concat(t.results(), t.logs(), []string{t.InboxPrefix(role) + ".>"}),
		}
	case RoleWorker:
		return t.workerPermissions()
	case RoleBuild:
		return Permissions{Publish: t.downloads(), Subscribe: []string{t.InboxPrefix(role) + ".>"}}
	case RoleOperator:
		return t.operatorPermissions()
	default:
		return Permissions{}
	}
}

func (t Topology) workerPermissions() Permissions {
	build, run := t.buildStream(), t.runStream()
	return Permissions{
		Publish: slices.Concat(
			t.results(), []string{t.Subjects().Of(events.TypeBuildDead)}, t.logs(),
			// Images that runs need, and do not need any more.
			[]string{t.Subjects().Of(events.TypeBuildRequested), t.Subjects().Of(events.TypeBuildCancel)},
			// Taking and answering requests and cancels, and reading a request again.
			t.eachConsumer("CONSUMER.INFO"), t.eachConsumer("CONSUMER.MSG.NEXT"), t.acks(),
			[]string{api("STREAM.INFO", build), api("STREAM.MSG.GET", build)}, reads(build),
			[]string{api("STREAM.INFO", run), api("STREAM.MSG.GET", run)}, reads(run), reads(t.runLogStream()),
			t.records(t.ledger()), t.records(t.backlog()), t.records(t.runs()), t.downloads(),
			// What `kiln doctor` looks at.
			[]string{api("INFO"), api("STREAM.INFO", t.logStream()), api("STREAM.INFO", t.runLogStream())},
		),
		DenyPublish: t.changeConsumers(),
		Subscribe:   []string{t.InboxPrefix(RoleWorker) + ".>"},
	}
}

func (t Topology) operatorPermissions() Permissions {
	p := Permissions{
		Publish:   []string{api("INFO"), api("STREAM.NAMES"), api("STREAM.LIST")},
		Subscribe: []string{t.InboxPrefix(RoleOperator) + ".>"},
	}
	for _, object := range append(t.streams(), t.buckets()...) {
		stream := object.config.Name
		p.Publish = append(p.Publish, api("STREAM.*", stream), api("STREAM.MSG.*", stream), api("CONSUMER.NAMES", stream), api("CONSUMER.LIST", stream))
	}
	p.Publish = slices.Concat(p.Publish, t.changeConsumers(), t.eachConsumer("CONSUMER.INFO"), t.eachConsumer("CONSUMER.PAUSE"))
	return p
}

// InboxPrefix is where a user in that role gets answers, the setting nats.inbox_prefix
// and nats.CustomInboxPrefix: "_INBOX_KILN_WORKER".
func (t Topology) InboxPrefix(role Role) string {
	if role == RolePublisher || role == RoleBuild {
		return "_INBOX"
	}
	return "_INBOX_" + t.name("KILN_"+strings.ToUpper(string(role)))
}

// results are the subjects of the events that workers emit for requesters. build.dead is
// none: it repeats what was requested, for operators.
func (t Topology) results() []string {
	return t.subjects(func(typ events.Type) bool { return !typ.Asked() && typ != events.TypeBuildDead })
}

// asked are the subjects of what requesters publish.
func (t Topology) asked() []string { return t.subjects(events.Type.Asked) }

func (t Topology) subjects(of func(events.Type) bool) []string {
	var all []string
	for _, typ := range events.Types() {
		if of(typ) {
			all = append(all, t.Subjects().Of(typ))
		}
	}
	return all
}

func (t Topology) logs() []string { return []string{t.Subjects().AllLogs(), t.Subjects().AllRunLogs()} }

// eachConsumer is what an action of the API takes on each of the workers' consumers.
func (t Topology) eachConsumer(action string, rest ...string) []string {
	all := t.consumers()
	out := make([]string, 0, len(all))
	for _, consumer := range all {
		out = append(out, api(append([]string{action, consumer.stream, consumer.config.Name}, rest...)...))
	}
	return out
}

// changeConsumers is what changes the workers' consumers.
func (t Topology) changeConsumers() []string {
	return slices.Concat(t.eachConsumer("CONSUMER.CREATE"), t.eachConsumer("CONSUMER.CREATE", ">"), t.eachConsumer("CONSUMER.DELETE"))
}

// records is what reading, writing and watching a bucket takes.
func (t Topology) records(bucket string) []string {
	stream := bucketStream(bucket)
	return append(reads(stream), api("STREAM.INFO", stream), api("STREAM.MSG.GET", stream), "$KV."+bucket+".>")
}

// reads is what reading a stream with consumers of one's own takes.
func reads(stream string) []string {
	return []string{
		api("CONSUMER.CREATE", stream, "*"), api("CONSUMER.CREATE", stream, "*", ">"),
		api("CONSUMER.MSG.NEXT", stream, "*"), api("CONSUMER.DELETE", stream, "*"),
	}
}

// downloads is what reading the object store takes, uploads what writing to it takes.
func (t Topology) downloads() []string {
	stream := objectStream(t.contexts())
	return append(reads(stream), api("STREAM.INFO", stream), api("STREAM.MSG.GET", stream), "$JS.FC."+stream+".>")
}

func (t Topology) uploads() []string {
	stream := objectStream(t.contexts())
	return []string{
		api("STREAM.INFO", stream), api("STREAM.MSG.GET", stream), "$O." + t.contexts() + ".C.>", "$O." + t.contexts() + ".M.>",
	}
}

func api(parts ...string) string { return "$JS.API." + strings.Join(parts, ".") }

// acks are what is published to answer a delivery; the server's feature flag
// js_ack_fc_v2 puts domain and account before the stream.
func (t Topology) acks() []string {
	consumers := t.consumers()
	all := make([]string, 0, 2*len(consumers))
	for _, c := range consumers {
		all = append(all, fmt.Sprintf("$JS.ACK.%s.%s.>", c.stream, c.config.Name), fmt.Sprintf("$JS.ACK.*.*.%s.%s.>", c.stream, c.config.Name))
	}
	return all
}
