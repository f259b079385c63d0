#!/bin/bash
set -euo pipefail
{{ scrub }} || true
{{ scrub_client }} || true
{% for job in jobs %}

mkdir -p {{ job.folders | map('quoted') | join(' ') }}
{{ job.variable }}=$(sbatch --parsable --export=ALL --kill-on-invalid-dep=yes{% if job.after %} --dependency="afterok:{{ job.after | join(':') }}"{% endif %} <<'ESSENCE_JOB'
{{ job.text }}
ESSENCE_JOB
)
echo "{{ job.identifier }} {{ job.stage_id }}"
{% endfor %}
