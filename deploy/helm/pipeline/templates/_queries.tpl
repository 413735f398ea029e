{{/* PromQL of the demand. (list . extra-matchers) */}}
{{- define "pipeline.matchers" -}}
namespace="{{ .Release.Namespace }}",service="{{ include "pipeline.name" . }}"
{{- end }}

{{- define "pipeline.waitingQuery" -}}
{{- $runtime := include "pipeline.runtime" . | fromYaml -}}
sum({{ $runtime.waiting }}{ {{- include "pipeline.matchers" . -}} }) or vector(0)
{{- end }}

{{/* In seconds; 0 while no request arrives, where the percentile is not a number. */}}
{{- define "pipeline.firstTokenQuery" -}}
{{- $runtime := include "pipeline.runtime" . | fromYaml -}}
(histogram_quantile(0.95, sum by (le) (rate({{ $runtime.firstToken }}_bucket{ {{- include "pipeline.matchers" . -}} }[2m]))){{ if $runtime.milliseconds }} / 1000{{ end }} > 0) or vector(0)
{{- end }}

{{/* dcgm-exporter's own pod is `pod`, and the pod that uses the GPU `exported_pod`. */}}
{{- define "pipeline.gpuQuery" -}}
avg(DCGM_FI_DEV_GPU_UTIL{exported_namespace="{{ .Release.Namespace }}",exported_pod=~"{{ include "pipeline.name" . }}-.*"}) or vector(0)
{{- end }}

{{/* KServe names its Deployment and Service after the InferenceService's predictor. */}}
{{- define "pipeline.kserveWaitingQuery" -}}
{{- $runtime := include "pipeline.runtime" . | fromYaml -}}
sum({{ $runtime.waiting }}{namespace="{{ .Release.Namespace }}",pod=~"{{ include "pipeline.name" . }}-predictor-.*"}) or vector(0)
{{- end }}
