{{/*
The pod of a training job. Several machines are pods of one indexed Job; the first one leads, and
the others find it by the name that the headless service gives it, as with launcher=kubernetes.
(dict root command nodes gpus service directory)
*/}}
{{- define "pipeline.trainingPod" -}}
{{- $v := .root.Values -}}
{{- $t := $v.training -}}
restartPolicy: Never
serviceAccountName: {{ include "pipeline.serviceAccount" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- if gt (int .nodes) 1 }}
subdomain: {{ .service }}
{{- end }}
securityContext:
  {{- toYaml $v.podSecurityContext | nindent 2 }}
{{- include "pipeline.placement" .root | nindent 0 }}
{{- with $t.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $t.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
containers:
  - name: pipeline
    image: {{ $t.image | quote }}
    command: [python3, -m, pipeline]
    args:
      {{- range .arguments }}
      - {{ . | quote }}
      {{- end }}
    {{- with .directory }}
    workingDir: {{ . }}
    {{- end }}
    env:
      {{- with include "pipeline.trackingUri" .root }}
      - {name: MLFLOW_TRACKING_URI, value: {{ . | quote }}}
      {{- end }}
      - {name: HOME, value: /tmp}
      {{- if gt (int .nodes) 1 }}
      - name: PET_NODE_RANK
        valueFrom: {fieldRef: {fieldPath: "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
      - {name: PET_MASTER_ADDR, value: {{ .service }}-0.{{ .service }}}
      - {name: PET_MASTER_PORT, value: "29500"}
      {{- end }}
      {{- with $t.env }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- include "pipeline.envFrom" (list .root $t.secrets) | nindent 4 }}
    {{- include "pipeline.resources" (list $t.resources .gpus dict) | nindent 4 }}
    securityContext:
      {{- include "pipeline.containerSecurity" .root | nindent 6 }}
    volumeMounts:
      - {name: shared, mountPath: {{ $t.mount }}}
      - {name: shm, mountPath: /dev/shm}
      - {name: tmp, mountPath: /tmp}
volumes:
  - name: shared
    persistentVolumeClaim: {claimName: {{ $t.claim }}}
  - name: shm
    emptyDir: {medium: Memory, sizeLimit: {{ $t.sharedMemory }}}
  - {name: tmp, emptyDir: {}}
{{- end }}
