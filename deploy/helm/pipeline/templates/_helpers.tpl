{{- define "pipeline.name" -}}
{{- default .Release.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "pipeline.selector" -}}
app.kubernetes.io/name: pipeline
app.kubernetes.io/instance: {{ include "pipeline.name" . }}
{{- end }}

{{- define "pipeline.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{ include "pipeline.selector" . }}
{{- end }}

{{/* Metadata of an object. `wave` orders it for Argo CD. (dict root suffix component wave labels annotations) */}}
{{- define "pipeline.metadata" -}}
name: {{ default (printf "%s%s" (include "pipeline.name" .root) (default "" .suffix)) .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "pipeline.labels" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .component }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $annotations := default dict .annotations }}
{{- if .root.Values.argocd.syncWaves }}
{{- $annotations = merge (dict "argocd.argoproj.io/sync-wave" (toString .wave)) $annotations }}
{{- end }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What differs between the servers. `metrics`: the port with Prometheus' text. */}}
{{- define "pipeline.runtimes" -}}
pipeline:
  ports: {http: 8000}
  live: /v1/health/live
  ready: /v1/health/ready
  metrics: {port: http, path: /metrics}
  waiting: num_requests_waiting
  firstToken: time_to_first_token_seconds
  milliseconds: false
nim:
  ports: {http: 8000}
  live: /v1/health/live
  ready: /v1/health/ready
  metrics: {port: http, path: /v1/metrics}
  {{- if eq (int .Values.nim.version) 1 }}
  waiting: num_requests_waiting
  firstToken: time_to_first_token_seconds
  {{- else }}
  waiting: "vllm:num_requests_waiting"
  firstToken: "vllm:time_to_first_token_seconds"
  {{- end }}
  milliseconds: false
triton:
  ports: {http: 8000, grpc: 8001, metrics: 8002}
  live: /v2/health/live
  ready: /v2/health/ready
  metrics: {port: metrics, path: /metrics}
  waiting: nv_inference_pending_request_count
  firstToken: nv_inference_first_response_histogram_ms
  milliseconds: true
vllm:
  ports: {http: 8000}
  live: /health
  ready: /health
  metrics: {port: http, path: /metrics}
  waiting: "vllm:num_requests_waiting"
  firstToken: "vllm:time_to_first_token_seconds"
  milliseconds: false
{{- end }}

{{- define "pipeline.runtime" -}}
{{- index (include "pipeline.runtimes" . | fromYaml) .Values.runtime | toYaml -}}
{{- end }}

{{- define "pipeline.image" -}}
{{- $image := .Values.image -}}
{{- if and (has .Values.runtime (list "nim" "triton" "vllm")) (eq $image.repository "pipeline") -}}
{{- fail (printf "runtime=%s needs image.repository and image.tag: the image of that server which your cluster can pull" .Values.runtime) -}}
{{- end -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag }}
{{- end -}}
{{- end }}

{{/* The model's folder in the claim. */}}
{{- define "pipeline.folder" -}}
{{- $pull := .Values.model.pull -}}
{{- if $pull.enabled -}}
{{- if $pull.digest -}}{{ $pull.digest | replace ":" "-" }}{{- else -}}{{ $pull.name }}-{{ $pull.version }}{{- end -}}
{{- else -}}
{{ .Values.model.path }}
{{- end -}}
{{- end }}

{{- define "pipeline.claim" -}}
{{- default (printf "%s-models" (include "pipeline.name" .)) .Values.store.claim -}}
{{- end }}

{{- define "pipeline.trackingUri" -}}
{{- if .Values.tracking.uri -}}
{{ .Values.tracking.uri }}
{{- else if .Values.mlflow.enabled -}}
http://{{ .Release.Name }}-mlflow.{{ .Release.Namespace }}.svc:5000
{{- end -}}
{{- end }}

{{- define "pipeline.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "pipeline.name" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{/* Secrets whose keys become variables. (list . names) */}}
{{- define "pipeline.envFrom" -}}
{{- $root := index . 0 -}}
{{- $names := index . 1 -}}
{{- if $root.Values.externalSecrets.enabled }}
{{- $names = append $names (printf "%s-secrets" (include "pipeline.name" $root)) }}
{{- end }}
{{- if $names }}
envFrom:
  {{- range $names }}
  - secretRef: {name: {{ . | quote }}}
  {{- end }}
{{- end }}
{{- end }}

{{/* GPUs beside the given CPU and memory. (list resources count mig) */}}
{{- define "pipeline.resources" -}}
{{- $given := deepCopy (index . 0) -}}
{{- $count := int (index . 1) -}}
{{- $mig := index . 2 -}}
{{- $name := "nvidia.com/gpu" -}}
{{- if $mig.profile -}}
{{- $name = printf "nvidia.com/mig-%s" $mig.profile -}}
{{- $count = int $mig.count -}}
{{- end -}}
{{- if $count -}}
{{- $given = mergeOverwrite $given (dict "limits" (mergeOverwrite (default dict $given.limits) (dict $name $count))) -}}
{{- end -}}
{{- if $given -}}
resources:
  {{- toYaml $given | nindent 2 }}
{{- end -}}
{{- end }}

{{/* What the restricted profile asks of each container. */}}
{{- define "pipeline.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end }}

{{/* Where pods run. */}}
{{- define "pipeline.placement" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* Checks that no schema can express. */}}
{{- define "pipeline.checks" -}}
{{- $v := .Values -}}
{{- if and $v.gpu.count $v.gpu.mig.profile -}}
{{- fail (printf "gpu.count=%d and gpu.mig.profile=%s: a pod has whole GPUs or slices of one: give one of them" (int $v.gpu.count) $v.gpu.mig.profile) -}}
{{- end -}}
{{- if and $v.model.pull.enabled (not $v.model.pull.version) (not $v.model.pull.digest) -}}
{{- fail "model.pull needs model.pull.digest, or model.pull.version (a number or an alias)" -}}
{{- end -}}
{{- if and $v.model.pull.enabled $v.model.path -}}
{{- fail "model.path and model.pull.enabled: the model is in the claim already, or is pulled: give one of them" -}}
{{- end -}}
{{- if and $v.model.pull.enabled (not $v.store.claim) (not (has "ReadWriteMany" $v.store.accessModes)) (not (has "ReadWriteOnce" $v.store.accessModes)) (not (has "ReadWriteOncePod" $v.store.accessModes)) -}}
{{- fail "model.pull writes into the claim, but store.accessModes=[ReadOnlyMany]: give ReadWriteMany, or model.path for a model that is there" -}}
{{- end -}}
{{- if and $v.model.pull.enabled (ne $v.runtime "pipeline") (not $v.model.pull.image) -}}
{{- fail (printf "model.pull with runtime=%s needs model.pull.image: the image of the Dockerfile's cpu target, which has stage=pull" $v.runtime) -}}
{{- end -}}
{{- if and $v.model.pull.enabled (ne $v.kserve.kind "none") -}}
{{- fail "model.pull has no effect with kserve, whose own init container reads kserve.storageUri: leave it out" -}}
{{- end -}}
{{- if and (or $v.monitoring.rules $v.monitoring.dashboard) (ne $v.runtime "pipeline") -}}
{{- fail (printf "monitoring.rules and monitoring.dashboard show the metrics of runtime=pipeline, and %s exports others: leave them out" $v.runtime) -}}
{{- end -}}
{{- if and $v.server.settings (ne $v.runtime "pipeline") -}}
{{- fail (printf "server.settings are of runtime=pipeline: give %s its options as server.arguments or server.env" $v.runtime) -}}
{{- end -}}
{{- if and $v.server.arguments (not (has $v.runtime (list "triton" "vllm"))) -}}
{{- fail (printf "server.arguments has no effect with runtime=%s: give server.settings (pipeline) or server.env (nim)" $v.runtime) -}}
{{- end -}}
{{- if and $v.lora.enabled (not (has $v.runtime (list "pipeline" "nim"))) -}}
{{- fail (printf "lora.enabled has no effect with runtime=%s: only pipeline and nim read a folder of adapters" $v.runtime) -}}
{{- end -}}
{{- if and (or $v.server.tensorParallel $v.server.maxModelLength) (eq $v.runtime "triton") -}}
{{- fail "server.tensorParallel and server.maxModelLength are fixed in Triton's model repository: leave them out" -}}
{{- end -}}
{{- $several := or (gt (int $v.replicas) 1) (ne $v.autoscaling.kind "none") -}}
{{- $shared := and (eq $v.workload "Deployment") (not $v.store.claim) (eq $v.kserve.kind "none") -}}
{{- if and $shared $several (not (has "ReadWriteMany" $v.store.accessModes)) (not (has "ReadOnlyMany" $v.store.accessModes)) -}}
{{- fail "several replicas of a Deployment share one claim: give store.accessModes=[ReadWriteMany], or workload=StatefulSet, where each has its own" -}}
{{- end -}}
{{- if and (not $v.model.pull.enabled) (not $v.model.path) (not $v.kserve.storageUri) -}}
{{- fail "no model: give model.path (a folder in store.claim), or model.pull.enabled=true with name, version and store" -}}
{{- end -}}
{{- if and $v.model.pull.enabled (not (include "pipeline.trackingUri" .)) -}}
{{- fail "model.pull asks the registry: give tracking.uri, or mlflow.enabled=true" -}}
{{- end -}}
{{- if and (gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- fail (printf "autoscaling.minReplicas=%d is more than autoscaling.maxReplicas=%d" (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- if and (ne $v.autoscaling.kind "none") (kindIs "invalid" $v.autoscaling.waitingPerReplica) (kindIs "invalid" $v.autoscaling.firstTokenSeconds) (kindIs "invalid" $v.autoscaling.gpuUtilization) -}}
{{- fail "autoscaling needs a signal: give autoscaling.waitingPerReplica, firstTokenSeconds or gpuUtilization" -}}
{{- end -}}
{{- if and (ne $v.autoscaling.kind "none") (not (kindIs "invalid" $v.autoscaling.gpuUtilization)) (not $v.gpu.count) (not $v.gpu.mig.profile) -}}
{{- fail "autoscaling.gpuUtilization needs GPUs: give gpu.count, or leave it out" -}}
{{- end -}}
{{- if and (eq (toString $v.rollout.maxSurge) "0") (eq (toString $v.rollout.maxUnavailable) "0") -}}
{{- fail "rollout.maxSurge=0 and rollout.maxUnavailable=0 leave no way to change a pod: give one of them" -}}
{{- end -}}
{{- if ne $v.canary.kind "none" -}}
{{- if ne $v.runtime "pipeline" -}}
{{- fail (printf "canary.kind=%s reads the counts of runtime=pipeline, and %s has others: leave it out" $v.canary.kind $v.runtime) -}}
{{- end -}}
{{- if or (not $v.httpRoute.enabled) (ne $v.kserve.kind "none") -}}
{{- fail (printf "canary.kind=%s splits the traffic by the weights of an HTTPRoute: give httpRoute.enabled=true, and leave kserve out" $v.canary.kind) -}}
{{- end -}}
{{- if and (eq $v.canary.kind "rollout") (ne $v.workload "Deployment") -}}
{{- fail "canary.kind=rollout makes a Rollout in place of the Deployment: leave workload=StatefulSet out" -}}
{{- end -}}
{{- if and (eq $v.canary.kind "route") (not $v.canary.service) -}}
{{- fail "canary.kind=route needs canary.service: the service of the candidate, which another release of this chart has" -}}
{{- end -}}
{{- if and (eq $v.canary.kind "rollout") $v.canary.service -}}
{{- fail "canary.service has no effect with canary.kind=rollout, whose candidate is the changed release itself: leave it out" -}}
{{- end -}}
{{- end -}}
{{- if and $v.retrain.enabled (not $v.training.image) -}}
{{- fail "retrain.enabled needs training.image and training.claim" -}}
{{- end -}}
{{- if and (or $v.retrain.enabled $v.jobs) (not $v.training.claim) -}}
{{- fail "jobs and retrain need training.claim: a ReadWriteMany claim with models, data and artifacts" -}}
{{- end -}}
{{- if and $v.jobs (not $v.training.image) -}}
{{- fail "jobs need training.image: the image of the Dockerfile's train target" -}}
{{- end -}}
{{- end }}
