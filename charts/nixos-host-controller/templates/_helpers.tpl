{{- define "nhc.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- /* At most 52 characters: a StatefulSet's name and a hash go into a label of 63. */ -}}
{{- define "nhc.fullname" -}}
{{- $name := include "nhc.name" . }}
{{- $both := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- default $both .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "nhc.selector" -}}
app.kubernetes.io/name: {{ include "nhc.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "nhc.labels" -}}
{{ include "nhc.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "nhc.serviceAccount" -}}
{{- default (include "nhc.fullname" .) .Values.serviceAccount.name }}
{{- end }}

{{- define "nhc.lease" -}}
{{- default (include "nhc.fullname" .) .Values.leaderElection.leaseName }}
{{- end }}

{{- define "nhc.brake" -}}
{{- default (printf "%s-brake" (include "nhc.fullname" .)) .Values.brake.configMapName }}
{{- end }}

{{- define "nhc.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- with .Values.image.digest }}@{{ . }}{{ end }}
{{- end }}

{{- /* Names of what belongs to the whole cluster: two releases in two namespaces may have the same full name. */ -}}
{{- define "nhc.clusterName" -}}
{{- eq .Release.Namespace (include "nhc.fullname" .) | ternary (include "nhc.fullname" .) (printf "%s-%s" .Release.Namespace (include "nhc.fullname" .)) }}
{{- end }}
