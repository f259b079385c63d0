#!/bin/bash -l
{# A login shell: modules are a function of its profile. #}
# {{ title }}
#SBATCH --job-name={{ stage_id }}
#SBATCH --chdir={{ folder }}
#SBATCH --output={{ log }}
#SBATCH --open-mode=append
{% if site.account %}
#SBATCH --account={{ site.account }}
{% endif %}
{% if site.partition %}
#SBATCH --partition={{ site.partition }}
{% endif %}
{% for name in ('qos', 'constraint', 'reservation') if site[name] %}
#SBATCH --{{ name }}={{ site[name] }}
{% endfor %}
{% if site.exclusive %}
#SBATCH --exclusive
{% endif %}
#SBATCH --nodes={{ nodes }}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task={{ limits.cpus }}
{% if memory_mib %}
#SBATCH --mem={{ memory_mib }}M
{% endif %}
#SBATCH --time={{ time }}
{% if gpus %}
#SBATCH --gres=gpu:{% if site.gpu_type %}{{ site.gpu_type }}:{% endif %}{{ gpus }}
{% endif %}
{% for option in site.options %}
#SBATCH {{ option }}
{% endfor %}
#SBATCH --requeue
{% if keeps_progress %}
#SBATCH --signal=B:USR1@{{ site.signal_s }}
{% endif %}

# No token of the caller's is for a stage without network.
{{ scrub }}
unset SLURM_JWT
{% if site.modules %}
module load {{ site.modules | map('quoted') | join(' ') }}
{% endif %}
# Apptainer has its options in its command line: folders and variables that somebody sets for it stay outside.
{{ scrub_apptainer }}
{% if limit_words %}
# The stage has the limits of this shell, in its container too.
prlimit --pid=$$ {{ limit_words }} || { echo "this node does not grant {{ limit_words }} (resources.ulimits)"; exit 2; }
{% endif %}
{% if shared_folders %}
mkdir -p {{ shared_folders | map('quoted') | join(' ') }}
{% endif %}
cat > {{ spec_file | quoted }} <<'ESSENCE_SPEC'
{{ spec }}
ESSENCE_SPEC
{% if nodes > 1 %}
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1){{ site.address_suffix }}
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
{% endif %}
task=$(cat <<'ESSENCE_TASK'
{% include 'task.sh' %}
ESSENCE_TASK
)
near_limit=0
stage=
# srun passes USR1 on to its tasks; of SIGTERM Slurm tells them by itself.
trap 'near_limit=1; [ -z "$stage" ] || kill -USR1 "$stage" 2>/dev/null' USR1
trap : TERM
{# The first machine's task goes on after the others, to write the manifest. #}
srun \
  --export=ALL{% if limit_words %} \
  --propagate=ALL{% endif %} \
  --nodes={{ nodes }} \
  --ntasks={{ nodes }} \
  --ntasks-per-node=1 \
  --cpus-per-task={{ limits.cpus }} \
  --kill-on-bad-exit=0 \
  --wait={{ site.rest_wait_s }}{% if site.container == 'pyxis' %} \
  --container-image={{ image | quoted }} \
  --no-container-mount-home \
  --container-workdir={{ folder | quoted }} \
  --container-mounts={{ mounts | quoted }}{% endif %} bash -c "$task" &
stage=$!
wait "$stage"
code=$?
while kill -0 "$stage" 2>/dev/null; do wait "$stage"; code=$?; done
[ "$code" -le 128 ] || { wait "$stage"; code=$?; }
# Only what the time limit stopped is queued again: not what was cancelled.
if [ "$code" -eq {{ exit_stopped }} ] && [ "$near_limit" -eq 1 ]; then
  trap - TERM USR1
  scontrol requeue "$SLURM_JOB_ID" && sleep 60
fi
exit "$code"
