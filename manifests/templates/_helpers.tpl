{{- define "outrigger.labels" -}}
app.kubernetes.io/name: outrigger
app.kubernetes.io/instance: {{ .Values.meshName }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "outrigger.selector" -}}
app.kubernetes.io/name: outrigger
app.kubernetes.io/component: outriggerd
{{- end -}}

{{- /* The namespaces that are never injected. */ -}}
{{- define "outrigger.systemNamespaces" -}}
[kube-system, kube-public, kube-node-lease, {{ .Release.Namespace }}]
{{- end -}}

{{- /* What a pod itself says about its injection, in CEL. */ -}}
{{- define "outrigger.word" -}}
object.metadata.?labels[?'outrigger.dev/inject'].or(object.metadata.?annotations[?'outrigger.dev/inject']).or(object.metadata.?annotations[?'openservicemesh.io/sidecar-injection']).orValue('')
{{- end -}}

{{- /* Which namespaces are in the mesh, by our label ("mesh") or OSM's ("osm"). */ -}}
{{- define "outrigger.member" -}}
- {key: kubernetes.io/metadata.name, operator: NotIn, values: {{ include "outrigger.systemNamespaces" .root }}}
- {key: openservicemesh.io/ignore, operator: DoesNotExist}
{{- if eq .way "mesh" }}
- {key: outrigger.dev/inject, operator: Exists}
{{- else if eq .way "osm" }}
- {key: openservicemesh.io/monitored-by, operator: In, values: [{{ .root.Values.osmMeshName | quote }}]}
- {key: control-plane, operator: DoesNotExist}
- {key: outrigger.dev/inject, operator: DoesNotExist}
{{- end }}
{{- end -}}
