{{/* What a candidate's and the stable version's pods are told apart by, with Argo Rollouts. */}}
{{- define "pipeline.role" -}}
pipeline/role
{{- end }}

{{/* The pod that runs stage=canary: its exit code is the decision. (dict root arguments token) */}}
{{- define "pipeline.canaryPod" -}}
{{- $v := .root.Values -}}
restartPolicy: Never
serviceAccountName: {{ .account }}
automountServiceAccountToken: {{ .token }}
enableServiceLinks: false
securityContext:
  {{- toYaml $v.podSecurityContext | nindent 2 }}
{{- include "pipeline.placement" (dict "Values" (dict "imagePullSecrets" $v.imagePullSecrets "runtimeClassName" "" "priorityClassName" $v.priorityClassName)) | nindent 0 }}
containers:
  - name: canary
    image: {{ default (include "pipeline.image" .root) $v.canary.image | quote }}
    imagePullPolicy: {{ $v.image.pullPolicy }}
    args:
      - stage=canary
      - artifacts=/reports
      {{- range .arguments }}
      - {{ . | quote }}
      {{- end }}
      {{- range $v.canary.settings }}
      - {{ . | quote }}
      {{- end }}
    env:
      - {name: HOME, value: /tmp}
      {{- with include "pipeline.trackingUri" .root }}
      - {name: MLFLOW_TRACKING_URI, value: {{ . | quote }}}
      {{- end }}
    {{- include "pipeline.envFrom" (list .root $v.server.secrets) | nindent 4 }}
    {{- include "pipeline.resources" (list $v.canary.resources 0 dict) | nindent 4 }}
    securityContext:
      {{- include "pipeline.containerSecurity" .root | nindent 6 }}
      readOnlyRootFilesystem: true
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      - {name: reports, mountPath: /reports}
volumes:
  - {name: tmp, emptyDir: {}}
  - name: reports
    {{- if $v.canary.claim }}
    persistentVolumeClaim: {claimName: {{ $v.canary.claim }}}
    {{- else }}
    emptyDir: {}
    {{- end }}
{{- end }}

{{- define "pipeline.canaryLabels" -}}
app.kubernetes.io/name: pipeline-canary
app.kubernetes.io/instance: {{ include "pipeline.name" . }}
app.kubernetes.io/component: canary
{{- end }}

{{/* Argo Rollouts' strategy, in place of a Deployment's. */}}
{{- define "pipeline.rolloutStrategy" -}}
{{- $name := include "pipeline.name" . -}}
canary:
  stableService: {{ $name }}
  canaryService: {{ $name }}-canary
  maxSurge: {{ .Values.rollout.maxSurge }}
  maxUnavailable: {{ .Values.rollout.maxUnavailable }}
  stableMetadata: {labels: { {{- include "pipeline.role" . }}: stable}}
  canaryMetadata: {labels: { {{- include "pipeline.role" . }}: canary}}
  trafficRouting:
    plugins:
      argoproj-labs/gatewayAPI:
        httpRoute: {{ $name }}
        namespace: {{ .Release.Namespace }}
  steps:
    - setCanaryScale: {replicas: 1}
    - setWeight: {{ .Values.canary.percent }}
    - analysis:
        templates: [{templateName: {{ $name }}-canary}]
{{- end }}
