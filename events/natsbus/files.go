package natsbus

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// Files returns what a server that is not provisioned by Kiln needs, by file name, for
// the tools of the field:
//
//   - "<stream>.json" for `nats stream add --config`, the buckets' too;
//   - "build-workers.json", "run-triggers.json" and so on for `nats consumer add --config`,
//     of the stream that their subjects say;
//   - "roles.conf" to be included into the configuration of a nats-server: one variable
//     with the permissions of each Role.
//
// What the first two make is what Provision makes, without drift. The error is that of
// a faulty topology.
func (t Topology) Files() (map[string][]byte, error) {
	if err := t.validate(); err != nil {
		return nil, err
	}
	t = t.withDefaults()
	files := map[string][]byte{RolesFile: t.roles()}
	configs := map[string]any{}
	for _, consumer := range t.consumers() {
		configs[consumer.config.Name] = consumer.config
	}
	for _, stream := range append(t.streams(), t.buckets()...) {
		configs[stream.config.Name] = stream.config
	}
	for name, config := range configs {
		var text bytes.Buffer
		encoder := json.NewEncoder(&text)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(config); err != nil {
			return nil, fmt.Errorf("encode %s: %w", name, err)
		}
		files[name+".json"] = text.Bytes()
	}
	return files, nil
}

// RolesFile is the file of the permissions.
const RolesFile = "roles.conf"

// roles returns the permissions in the server's own language, in which a name with a
// value is a variable.
func (t Topology) roles() []byte {
	var out bytes.Buffer
	out.WriteString("# What each role may do. Made by `kiln provision --write`; a prefix changes it.\n")
	for _, role := range Roles() {
		p := t.Permissions(role)
		fmt.Fprintf(&out, "\n# Inbox prefix: %s\n%s: {\n", t.InboxPrefix(role), RoleVariable(role))
		switch {
		case len(p.Publish) == 0:
			// An empty list would allow everything.
			out.WriteString("  publish: {deny: \">\"}\n")
		case len(p.DenyPublish) == 0:
			fmt.Fprintf(&out, "  publish: {allow: %s}\n", list(p.Publish))
		default:
			fmt.Fprintf(&out, "  publish: {\n    allow: %s\n    deny: %s\n  }\n", list(p.Publish), list(p.DenyPublish))
		}
		fmt.Fprintf(&out, "  subscribe: {allow: %s}\n}\n", list(p.Subscribe))
	}
	return out.Bytes()
}

// RoleVariable is the name of a role's permissions in RolesFile.
func RoleVariable(role Role) string { return "KILN_" + strings.ToUpper(string(role)) }

// list quotes subjects, whose "$" would else begin a variable.
func list(subjects []string) string {
	var out strings.Builder
	out.WriteString("[\n")
	for _, subject := range subjects {
		fmt.Fprintf(&out, "    %q\n", subject)
	}
	return out.String() + "  ]"
}
