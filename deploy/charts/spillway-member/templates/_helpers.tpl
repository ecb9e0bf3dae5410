{{/* Labels of an object; takes the component's name. */}}
{{- define "spillway.labels" -}}
app.kubernetes.io/name: spillway-{{ . }}
app.kubernetes.io/component: {{ . }}
app.kubernetes.io/part-of: spillway
{{- end }}

{{- define "spillway.selector" -}}
app.kubernetes.io/name: spillway-{{ . }}
{{- end }}
