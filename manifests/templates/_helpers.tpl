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

{{- /* Who signs at the first start, as outriggerd reads it. */ -}}
{{- define "outrigger.authority" -}}
{{- $vault := .Values.certificates.vault -}}
{{- if and $vault.token $vault.kubernetes -}}
{{- fail "certificates.vault.token and certificates.vault.kubernetes are both set; exactly one is allowed (--set certificates.vault.token=null takes one away)" -}}
{{- end -}}
{{- if eq .Values.certificates.issuer "certManager" -}}
{{- $_ := required "certificates.certManager.issuer is empty; it is required with certificates.issuer=certManager" .Values.certificates.certManager.issuer -}}
{{- dict "certManager" .Values.certificates.certManager | toJson -}}
{{- else if eq .Values.certificates.issuer "vault" -}}
{{- $_ := required "certificates.vault.address is empty; it is required with certificates.issuer=vault" $vault.address -}}
{{- $_ := required "certificates.vault.role is empty; it is required with certificates.issuer=vault" $vault.role -}}
{{- if not (or $vault.token $vault.kubernetes) }}{{ fail "certificates.vault.token and certificates.vault.kubernetes are both empty; one is required with certificates.issuer=vault" }}{{ end -}}
{{- dict "vault" $vault | toJson -}}
{{- else -}}
{{- dict "builtIn" .Values.certificates.builtIn | toJson -}}
{{- end -}}
{{- end -}}

{{- /* The Secrets that outriggerd may read: those of its own CAs, and those that authorities need. */ -}}
{{- define "outrigger.secrets" -}}
{{- $names := concat (list "outrigger-ca" "outrigger-ca-2" "outrigger-ca-3" "outrigger-ca-4" "outrigger-webhook-ca") .Values.certificates.secrets -}}
{{- $names = append $names .Values.certificates.builtIn.secret -}}
{{- with .Values.certificates.vault -}}
{{- $names = append $names .caSecret -}}
{{- with .token }}{{ $names = append $names .secret }}{{ end -}}
{{- end -}}
{{- $names | compact | uniq | toJson -}}
{{- end -}}
