# One task a node. Slurm's signals reach this shell alone: it asks the stage, which tells the processes that it started.
asked=
stage=
ask_to_stop() { asked=1; [ -z "$stage" ] || kill -TERM "$stage" 2>/dev/null; }
trap ask_to_stop TERM USR1
{% if site.container == 'apptainer' %}
work="{{ site.scratch }}/essence-$SLURM_JOB_ID-${SLURM_NODEID:-0}"
mkdir -p "$work"
{% endif %}
given=("ESSENCE_HOST=$(hostname)")
for name in {{ names_on_node | join(' ') }}; do
  [ -z "${!name-}" ] || given+=("$name=${!name}")
done
{% if site.container == 'apptainer' %}
{{ apptainer }} --workdir="$work" \
  {{ image | quoted }} {% endif %}
env \
{% for name, value in variables.items() %}
  {{ (name ~ '=' ~ value) | quoted }}{{ ' "${given[@]}"' if loop.last }} \
{% endfor %}
  {{ command }} &
stage=$!
[ -z "$asked" ] || ask_to_stop
wait "$stage"
code=$?
# A signal ends the first wait early.
while kill -0 "$stage" 2>/dev/null; do wait "$stage"; code=$?; done
[ "$code" -le 128 ] || { wait "$stage"; code=$?; }
{% if site.container == 'apptainer' %}
rm -rf "$work"
{% endif %}
exit "$code"
