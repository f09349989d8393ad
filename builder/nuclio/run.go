package nuclio

import (
	"encoding/json"
	"fmt"
)

// runSettings passes on what matters once the function runs.
func (m *maker) runSettings(spec tree) {
	for _, f := range [][2]string{
		{"min_replicas", "minReplicas"},
		{"max_replicas", "maxReplicas"},
		{"service_type", "serviceType"},
		{"readiness_timeout", "readinessTimeoutSeconds"},
		{"readiness_timeout_before_failure", "waitReadinessTimeoutBeforeFailure"},
		{"resources", "resources"},
		{"node_selector", "nodeSelector"},
		{"node_name", "nodeName"},
		{"affinity", "affinity"},
		{"tolerations", "tolerations"},
		{"preemption_mode", "preemptionMode"},
		{"priority_class_name", "priorityClassName"},
		{"service_account", "serviceAccount"},
		{"security_context", "securityContext"},
	} {
		if value := m.fields[f[0]]; !empty(value) {
			spec[f[1]] = value
		}
	}
	if value := m.fields["replicas"]; !empty(value) {
		spec["minReplicas"], spec["maxReplicas"] = value, value
	}
	if value := m.fields["disable_default_http_trigger"]; value != nil {
		spec["disableDefaultHTTPTrigger"] = value
	}
	m.volumes(spec)
	m.env(spec)
}

// volumes pairs each volume with the mounts that name it.
func (m *maker) volumes(spec tree) {
	mounts, _ := m.fields["volume_mounts"].([]any)
	volumes, _ := m.fields["volumes"].([]any)
	all, _ := spec["volumes"].([]any)
	for _, volume := range volumes {
		v, ok := volume.(map[string]any)
		if !ok {
			m.fault("spec.volumes", "must be a list of objects")
			return
		}
		for _, mount := range mounts {
			if at, ok := mount.(map[string]any); ok && at["name"] == v["name"] {
				all = append(all, map[string]any{"volume": v, "volumeMount": at})
			}
		}
	}
	if len(all) > 0 {
		spec["volumes"] = all
	}
}

// env adds the function's variables to those that are there; a later one of the same
// name takes the place of an earlier one.
func (m *maker) env(spec tree) {
	all, _ := spec["env"].([]any)
	put := func(name string, variable map[string]any) {
		for i, old := range all {
			if v, ok := old.(map[string]any); ok && v["name"] == name {
				all[i] = variable
				return
			}
		}
		all = append(all, variable)
	}
	own, _ := m.fields["env"].([]any)
	for i, variable := range own {
		v, ok := variable.(map[string]any)
		name, named := v["name"].(string)
		if !ok || !named || name == "" {
			m.fault(fmt.Sprintf("spec.env[%d]", i), "must be an object with a name")
			continue
		}
		if v["value"] != nil || v["valueFrom"] != nil {
			put(name, v)
		}
	}
	put("MLRUN_DEFAULT_PROJECT", map[string]any{"name": "MLRUN_DEFAULT_PROJECT", "value": m.spec.Project})
	if graph := m.servingSpec(); graph != "" {
		put("SERVING_SPEC_ENV", map[string]any{"name": "SERVING_SPEC_ENV", "value": graph})
	}
	spec["env"] = all
}

// servingSpec is how a serving function learns its graph.
func (m *maker) servingSpec() string {
	if m.spec.Kind != "serving" || empty(m.fields["graph"]) {
		return ""
	}
	graph := map[string]any{
		"function_uri": m.spec.Project + "/" + m.spec.Name + ":" + orElse(m.spec.Tag, "latest"),
		"version":      "v2",
	}
	for _, key := range []string{
		"parameters", "graph", "load_mode", "graph_initializer", "error_stream", "track_models", "tracking_policy",
		"default_content_type", "secret_sources",
	} {
		if m.fields[key] != nil {
			graph[key] = m.fields[key]
		}
	}
	m.hideInline()
	text, err := json.Marshal(graph)
	if err != nil {
		m.fault("spec.graph", "%w", err)
		return ""
	}
	return string(text)
}

// hideInline hides the secrets that the graph brings along.
func (m *maker) hideInline() {
	sources, _ := m.fields["secret_sources"].([]any)
	for _, source := range sources {
		s, _ := source.(map[string]any)
		if s["kind"] != "inline" {
			continue
		}
		transform(s["source"], func(text string) string {
			m.hidden = append(m.hidden, text)
			return text
		})
	}
}
