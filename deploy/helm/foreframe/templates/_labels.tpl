{{- define "foreframe.selector" -}}
app.kubernetes.io/name: foreframe
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}
{{- define "foreframe.labels" -}}
{{ include "foreframe.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}
