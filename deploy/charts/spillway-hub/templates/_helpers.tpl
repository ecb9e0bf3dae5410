{{- define "spillway.labels" -}}
app.kubernetes.io/name: spillway-hub
app.kubernetes.io/component: hub
app.kubernetes.io/part-of: spillway
{{- end }}

{{- define "spillway.selector" -}}
app.kubernetes.io/name: spillway-hub
{{- end }}
