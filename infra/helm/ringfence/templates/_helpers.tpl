{{- define "ringfence.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "ringfence.labels" -}}
app.kubernetes.io/name: ringfence
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* What selects the pods of one part: ringfence.selector (list . "api"). */}}
{{- define "ringfence.selector" -}}
app.kubernetes.io/name: ringfence
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "ringfence.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "ringfence.rayImage" -}}
{{ .Values.ray.image.repository }}:{{ .Values.ray.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* Pods that talk to Ray have Ray installed. */}}
{{- define "ringfence.clientImage" -}}
{{- if .Values.ray.enabled }}{{ include "ringfence.rayImage" . }}{{ else }}{{ include "ringfence.image" . }}{{ end -}}
{{- end -}}

{{- define "ringfence.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "ringfence.name" .) -}}
{{- end -}}

{{- define "ringfence.environment" -}}
envFrom:
  - configMapRef:
      name: {{ include "ringfence.name" . }}-settings
  {{- range .Values.existingSecrets }}
  - secretRef:
      name: {{ . }}
  {{- end }}
{{- end -}}

{{- define "ringfence.rayToken" -}}
{{- with .Values.ray.tokenSecret }}
- name: RAY_AUTH_MODE
  value: token
- name: RAY_AUTH_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: auth_token}
{{- end }}
{{- end -}}

{{- define "ringfence.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "ringfence.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "ringfence.mounts" -}}
- {name: data, mountPath: /data}
- {name: tmp, mountPath: /tmp}
{{- end -}}

{{- define "ringfence.volumes" -}}
- name: data
  emptyDir: {sizeLimit: {{ .Values.cache.sizeLimit }}}
- name: tmp
  emptyDir: {}
{{- end -}}
