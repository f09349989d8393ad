{{- define "kiln.fullname" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}
{{- end }}

{{- define "kiln.selector" -}}
app.kubernetes.io/name: kiln
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: worker
{{- end }}

{{- define "kiln.labels" -}}
{{ include "kiln.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "kiln.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "kiln.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (ternary (include "kiln.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "kiln.builds.namespace" -}}
{{ .Values.builds.namespace | default .Release.Namespace }}
{{- end }}

{{- define "kiln.builds.serviceAccount" -}}
{{ .Values.builds.serviceAccount.name | default (ternary (printf "%s-build" (include "kiln.fullname" .)) "" .Values.builds.serviceAccount.create) }}
{{- end }}

{{- /* Jobs of the installation have this label, whatever release made the worker. */ -}}
{{- define "kiln.instance" -}}
{{ dig "kube" "instance" .Release.Name .Values.config }}
{{- end }}

{{- define "kiln.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "kiln.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* Variables with what logs in at NATS: takes the values nats or provision. */ -}}
{{- define "kiln.nats.env" -}}
{{- range $key, $variable := dict "user" "KILN_NATS_USER" "password" "KILN_NATS_PASSWORD" }}
{{- with index $.keys $key }}
- name: {{ $variable }}
  valueFrom: {secretKeyRef: {name: {{ include "kiln.nats.secret" $ }}, key: {{ . }}}}
{{- end }}
{{- end }}
{{- end }}

{{- /* Settings of the files that log in at NATS, below /etc/kiln/nats. */ -}}
{{- define "kiln.nats.files" -}}
{{- range $key := list "credentials" "nkey" "ca" "cert" "key" }}
{{- with index $.keys $key }}
{{ $key }}: /etc/kiln/nats/{{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "kiln.nats.hasFiles" -}}
{{- if include "kiln.nats.files" . | trim }}true{{ end }}
{{- end }}

{{- /* The keys of the Secret that are files, and no others. */ -}}
{{- define "kiln.nats.volume" -}}
- name: nats
  secret:
    secretName: {{ include "kiln.nats.secret" . }}
    defaultMode: 0440
    items:
{{- range $key := list "credentials" "nkey" "ca" "cert" "key" }}
{{- with index $.keys $key }}
      - {key: {{ . }}, path: {{ . }}}
{{- end }}
{{- end }}
{{- end }}

{{- define "kiln.nats.secret" -}}
{{ required "nats.keys and provision.keys are keys of a Secret: name it with nats.secret or provision.secret" .secret }}
{{- end }}

{{- /* Variables with what Pods of builds log in with at NATS. */ -}}
{{- define "kiln.builds.nats.env" -}}
{{- range $key, $variable := dict "user" "KILN_KUBE_NATS_USER" "password" "KILN_KUBE_NATS_PASSWORD" }}
{{- with index $.Values.builds.nats.keys $key }}
- name: {{ $variable }}
  valueFrom: {secretKeyRef: {name: {{ include "kiln.builds.nats.secret" $ }}, key: {{ . }}}}
{{- end }}
{{- end }}
{{- end }}

{{- define "kiln.builds.nats.secret" -}}
{{ required "builds.nats.keys are keys of a Secret: name it with builds.nats.secret" .Values.builds.nats.secret }}
{{- end }}

{{- /* A certificate bundle of a ConfigMap or Secret: takes name and the values. */ -}}
{{- define "kiln.ca.volume" -}}
{{- if and .from.configMap .from.secret }}{{ fail (printf "%s: choose one of configMap and secret" .name) }}{{ end -}}
- name: {{ .name }}
{{- if .from.configMap }}
  configMap:
    name: {{ .from.configMap }}
{{- else }}
  secret:
    secretName: {{ .from.secret }}
    defaultMode: 0440
{{- end }}
    items: [{key: {{ .from.key }}, path: ca.crt}]
{{- end }}

{{- /* What Kiln reads: what follows from other values, and then config. */ -}}
{{- define "kiln.settings" -}}
{{- $v := .Values }}
{{- $nats := merge (dict "url" $v.nats.url) (include "kiln.nats.files" $v.nats | fromYaml) }}
{{- with $v.nats.prefix }}{{ $_ := set $nats "prefix" . }}{{ end }}
{{- with $v.nats.inboxPrefix }}{{ $_ := set $nats "inbox_prefix" . }}{{ end }}
{{- $registry := dict }}
{{- with $v.registry.url }}{{ $_ := set $registry "url" . }}{{ end }}
{{- if $v.registry.dockerConfigSecret }}{{ $_ := set $registry "docker_config" "/etc/kiln/docker/config.json" }}{{ end }}
{{- if $v.registry.secrets }}{{ $_ := set $registry "secrets_dir" "/etc/kiln/registry-secrets" }}{{ end }}
{{- if or $v.registry.ca.configMap $v.registry.ca.secret }}{{ $_ := set $registry "ca" "/etc/kiln/registry-ca/ca.crt" }}{{ end }}
{{- $kube := dict "namespace" (include "kiln.builds.namespace" .) "instance" .Release.Name "image" (include "kiln.image" .) "pull_policy" $v.image.pullPolicy }}
{{- with $v.builds.executorImage }}{{ $_ := set $kube "executor_image" . }}{{ end }}
{{- with $v.imagePullSecrets }}{{ $_ := set $kube "pull_secrets" . }}{{ end }}
{{- with include "kiln.builds.serviceAccount" . }}{{ $_ := set $kube "service_account" . }}{{ end }}
{{- with $v.builds.serviceAccounts }}{{ $_ := set $kube "service_accounts" . }}{{ end }}
{{- with $v.projects.lookup.namespace }}{{ $_ := set $kube "secrets_namespace" . }}{{ end }}
{{- with $v.projects.lookup.only }}{{ $_ := set $kube "secrets_projects" . }}{{ end }}
{{- with $v.builds.nats.url }}{{ $_ := set $kube "nats_url" . }}{{ end }}
{{- with $v.builds.nats.keys.credentials }}{{ $_ := set $kube "nats_credentials" (printf "/etc/kiln/build-nats/%s" .) }}{{ end }}
{{- $all := dict
  "engine" "kube"
  "log_format" "json"
  "http" (dict "addr" (printf ":%v" $v.metrics.port))
  "nats" $nats
  "kube" $kube
  "worker" (dict "slots" $v.worker.slots "soft_stop" (printf "%vs" $v.worker.softStopSeconds)) }}
{{- with $registry }}{{ $_ := set $all "registry" . }}{{ end }}
{{- if or $v.pip.ca.configMap $v.pip.ca.secret }}{{ $_ := set $all "pip" (dict "ca" "/etc/kiln/pip-ca/ca.crt") }}{{ end }}
{{- if $v.projects.secrets }}{{ $_ := set $all "secrets" (dict "dir" "/etc/kiln/project-secrets") }}{{ end }}
{{- if $v.projects.defaults }}{{ $_ := set $all "mlrun" (dict "projects_file" "/etc/kiln/config/projects.yaml") }}{{ end }}
{{- mustMergeOverwrite $all (deepCopy $v.config) | toYaml }}
{{- end }}
