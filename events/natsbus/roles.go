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
	// RolePublisher requests images, from any NATS client, and reads nothing.
	RolePublisher Role = "publisher"
	// RoleSubscriber hears results and log lines while they are published, and
	// publishes nothing.
	RoleSubscriber Role = "subscriber"
	// RoleClient is the package events/client and the commands of kiln: it requests,
	// and reads history too. It sees the requests of others. Who may make consumers may
	// have the server deliver copies of messages to any subject: it has to be trusted
	// not to.
	RoleClient Role = "client"
	// RoleWorker takes requests, keeps the ledger and publishes what became of them.
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
		return Permissions{Publish: []string{t.Subjects().Of(events.TypeBuildRequested)}, Subscribe: []string{"_INBOX.>"}}
	case RoleSubscriber:
		return Permissions{Subscribe: append(t.results(), t.Subjects().AllLogs())}
	case RoleClient:
		return Permissions{
			Publish: slices.Concat([]string{t.Subjects().Of(events.TypeBuildRequested)},
				reads(t.buildStream()), reads(t.logStream()), t.uploads()),
			// Readers' consumers have random names. This one belongs to the workers.
			DenyPublish: append(t.changeConsumer(), api("CONSUMER.MSG.NEXT", t.buildStream(), consumerName)),
			Subscribe:   append(t.results(), t.Subjects().AllLogs(), t.InboxPrefix(role)+".>"),
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
	build, ledger := t.buildStream(), bucketStream(t.ledger())
	return Permissions{
		Publish: slices.Concat(t.results(), []string{
			t.Subjects().AllLogs(),
			// Taking and answering requests.
			api("CONSUMER.INFO", build, consumerName), api("CONSUMER.MSG.NEXT", build, consumerName), ack(build), ackV2(build),
			// The ledger.
			api("STREAM.INFO", ledger), api("STREAM.MSG.GET", ledger), "$KV." + t.ledger() + ".>",
			// What `kiln doctor` looks at.
			api("INFO"), api("STREAM.INFO", build), api("STREAM.INFO", t.logStream()),
		}, reads(build), t.downloads()),
		DenyPublish: t.changeConsumer(),
		Subscribe:   []string{t.InboxPrefix(RoleWorker) + ".>"},
	}
}

func (t Topology) operatorPermissions() Permissions {
	p := Permissions{
		Publish:   []string{api("INFO"), api("STREAM.NAMES"), api("STREAM.LIST")},
		Subscribe: []string{t.InboxPrefix(RoleOperator) + ".>"},
	}
	for _, stream := range []string{t.buildStream(), t.logStream(), bucketStream(t.ledger()), objectStream(t.contexts())} {
		p.Publish = append(p.Publish, api("STREAM.*", stream), api("STREAM.MSG.*", stream), api("CONSUMER.NAMES", stream), api("CONSUMER.LIST", stream))
	}
	p.Publish = append(p.Publish, t.changeConsumer()...)
	p.Publish = append(p.Publish, api("CONSUMER.INFO", t.buildStream(), consumerName), api("CONSUMER.PAUSE", t.buildStream(), consumerName))
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

// results are the subjects of the events that workers emit.
func (t Topology) results() []string {
	s := t.Subjects()
	return []string{s.Of(events.TypeBuildStarted), s.Of(events.TypeBuildCompleted), s.Of(events.TypeBuildFailed)}
}

// changeConsumer is what changes the workers' consumer.
func (t Topology) changeConsumer() []string {
	return []string{
		api("CONSUMER.CREATE", t.buildStream(), consumerName), api("CONSUMER.CREATE", t.buildStream(), consumerName, ">"),
		api("CONSUMER.DELETE", t.buildStream(), consumerName),
	}
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

// ack and ackV2 are what is published to answer a delivery; the server's feature flag
// js_ack_fc_v2 puts domain and account before the stream.
func ack(stream string) string   { return fmt.Sprintf("$JS.ACK.%s.%s.>", stream, consumerName) }
func ackV2(stream string) string { return fmt.Sprintf("$JS.ACK.*.*.%s.%s.>", stream, consumerName) }
