{{/* The server's variables. `folder`: where the model is. (list . folder) */}}
{{- define "pipeline.env" -}}
{{- $root := index . 0 -}}
{{- $folder := index . 1 -}}
{{- $v := $root.Values -}}
{{- $tensor := $v.server.tensorParallel -}}
{{- if and (kindIs "invalid" $tensor) (eq $v.runtime "nim") (gt (int $v.gpu.count) 1) -}}
{{- $tensor = $v.gpu.count -}}
{{- end -}}
{{- if eq $v.runtime "pipeline" }}
- {name: NIM_MODEL_PATH, value: {{ $folder | quote }}}
- {name: NIM_SERVED_MODEL_NAME, value: {{ $v.model.name | quote }}}
{{- if $v.server.settings }}
- {name: NIM_PASSTHROUGH_ARGS, value: {{ join " " $v.server.settings | quote }}}
{{- end }}
{{- else if eq $v.runtime "nim" }}
- {name: {{ ternary "NIM_MODEL_NAME" "NIM_MODEL_PATH" (eq (int $v.nim.version) 1) }}, value: {{ $folder | quote }}}
- {name: NIM_SERVED_MODEL_NAME, value: {{ $v.model.name | quote }}}
- {name: NIM_CACHE_PATH, value: /opt/nim/.cache}
- {name: NIM_JSONL_LOGGING, value: "1"}
{{- with $v.nim.profile }}
- {name: NIM_MODEL_PROFILE, value: {{ . | quote }}}
{{- end }}
{{- else }}
- {name: HOME, value: /tmp}
- {name: HF_HUB_OFFLINE, value: "1"}
- {name: XDG_CACHE_HOME, value: /cache}
{{- end }}
{{- if has $v.runtime (list "pipeline" "nim") }}
{{- if not (kindIs "invalid" $tensor) }}
- {name: NIM_TENSOR_PARALLEL_SIZE, value: {{ $tensor | int | quote }}}
{{- end }}
{{- if not (kindIs "invalid" $v.server.maxModelLength) }}
- {name: NIM_MAX_MODEL_LEN, value: {{ $v.server.maxModelLength | int | quote }}}
{{- end }}
{{- if $v.lora.enabled }}
- {name: NIM_PEFT_SOURCE, value: /loras}
{{- if not (kindIs "invalid" $v.lora.refreshSeconds) }}
- {name: NIM_PEFT_REFRESH_INTERVAL, value: {{ $v.lora.refreshSeconds | int | quote }}}
{{- end }}
{{- if not (kindIs "invalid" $v.lora.maxRank) }}
- {name: NIM_MAX_LORA_RANK, value: {{ $v.lora.maxRank | int | quote }}}
{{- end }}
{{- end }}
{{- end }}
{{- with $v.server.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The command line of the images that read no variables. (list . folder) */}}
{{- define "pipeline.command" -}}
{{- $root := index . 0 -}}
{{- $folder := index . 1 -}}
{{- $v := $root.Values -}}
{{- if eq $v.runtime "triton" }}
command: [tritonserver]
args:
  - --model-repository={{ $folder }}
  - --metrics-config=histogram_latencies=true
  - --exit-timeout-secs={{ $v.drain.graceSeconds }}
  {{- if $v.triton.models }}
  - --model-control-mode=explicit
  {{- range $v.triton.models }}
  - --load-model={{ . }}
  {{- end }}
  {{- end }}
  {{- range $v.server.arguments }}
  - {{ . | quote }}
  {{- end }}
{{- else if eq $v.runtime "vllm" }}
command: [vllm, serve]
args:
  - {{ $folder | quote }}
  - --served-model-name={{ $v.model.name }}
  - --port=8000
  {{- $tensor := default $v.gpu.count $v.server.tensorParallel }}
  {{- if gt (int $tensor) 1 }}
  - --tensor-parallel-size={{ $tensor }}
  {{- end }}
  {{- if not (kindIs "invalid" $v.server.maxModelLength) }}
  - --max-model-len={{ $v.server.maxModelLength | int }}
  {{- end }}
  {{- range $v.server.arguments }}
  - {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "pipeline.probe" -}}
httpGet: {path: {{ index . 0 }}, port: http}
periodSeconds: {{ (index . 1).periodSeconds }}
timeoutSeconds: 4
{{- end }}

{{/* One container. (list . name folder) */}}
{{- define "pipeline.container" -}}
{{- $root := index . 0 -}}
{{- $v := $root.Values -}}
{{- $runtime := include "pipeline.runtime" $root | fromYaml -}}
- name: {{ index . 1 }}
  image: {{ include "pipeline.image" $root | quote }}
  imagePullPolicy: {{ $v.image.pullPolicy }}
  {{- include "pipeline.command" (list $root (index . 2)) | nindent 2 }}
  env:
    {{- include "pipeline.env" (list $root (index . 2)) | nindent 4 }}
  {{- include "pipeline.envFrom" (list $root $v.server.secrets) | nindent 2 }}
  ports:
    {{- range $name, $port := $runtime.ports }}
    - {name: {{ $name }}, containerPort: {{ $port }}, protocol: TCP}
    {{- end }}
  startupProbe: # until it answers, and no longer
    {{- include "pipeline.probe" (list $runtime.ready $v.probes) | nindent 4 }}
    failureThreshold: {{ max 1 (div (int $v.probes.startSeconds) (int $v.probes.periodSeconds)) }}
  readinessProbe:
    {{- include "pipeline.probe" (list $runtime.ready $v.probes) | nindent 4 }}
    failureThreshold: 2
  livenessProbe:
    {{- include "pipeline.probe" (list $runtime.live $v.probes) | nindent 4 }}
    failureThreshold: 12
  {{- if $v.drain.noticeSeconds }}
  lifecycle:
    preStop:
      sleep: {seconds: {{ $v.drain.noticeSeconds }}}
  {{- end }}
  {{- include "pipeline.resources" (list $v.server.resources $v.gpu.count $v.gpu.mig) | nindent 2 }}
  securityContext:
    {{- include "pipeline.containerSecurity" $root | nindent 4 }}
    readOnlyRootFilesystem: {{ eq $v.runtime "pipeline" }}
{{- end }}

{{/* The volume mounts beside the model's. */}}
{{- define "pipeline.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: shm, mountPath: /dev/shm}
- {name: cache, mountPath: {{ ternary "/opt/nim/.cache" "/cache" (has .Values.runtime (list "pipeline" "nim")) }}}
{{- end }}

{{- define "pipeline.volumes" -}}
- {name: tmp, emptyDir: {}}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .Values.server.sharedMemory }}}
{{- if or (not .Values.cache.enabled) (eq .Values.workload "Deployment") }}
- name: cache
  {{- if .Values.cache.enabled }}
  persistentVolumeClaim: {claimName: {{ default (printf "%s-cache" (include "pipeline.name" .)) .Values.cache.claim }}}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- end }}
{{- end }}

{{/* The init container that fetches the artifact by its digest, whole and verified, or not at all. */}}
{{- define "pipeline.pull" -}}
{{- $pull := .Values.model.pull -}}
- name: pull
  image: {{ default (include "pipeline.image" .) $pull.image | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args:
    - stage=pull
    - register.name={{ $pull.name }}
    - register.version={{ default $pull.version (trimPrefix "sha256:" $pull.digest) }}
    {{- with $pull.store }}
    - register.store={{ . }}
    {{- end }}
    - pull.to=/models/{{ include "pipeline.folder" . }}
    {{- range $pull.settings }}
    - {{ . | quote }}
    {{- end }}
  env:
    - {name: MLFLOW_TRACKING_URI, value: {{ include "pipeline.trackingUri" . | quote }}}
    - {name: HOME, value: /tmp}
    {{- with .Values.server.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- include "pipeline.envFrom" (list . .Values.server.secrets) | nindent 2 }}
  {{- include "pipeline.resources" (list $pull.resources 0 dict) | nindent 2 }}
  securityContext:
    {{- include "pipeline.containerSecurity" . | nindent 4 }}
    readOnlyRootFilesystem: true
  volumeMounts:
    - {name: models, mountPath: /models}
    - {name: tmp, mountPath: /tmp}
{{- end }}
