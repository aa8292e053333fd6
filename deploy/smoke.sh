#!/usr/bin/env bash
# Build the image, start the service and Prometheus, predict, and see the prediction in Prometheus
# and everything else on the dashboard; then take everything down. Needs Docker with Compose v2,
# curl and Python 3. Exits with 0 only if all of it held.
#
#   SMOKE_PORT, SMOKE_PROMETHEUS_PORT   ports on this machine (18000, 19090)
#   COMPOSE_FILE                        other compose files, as Compose itself reads it
set -euo pipefail
cd "$(dirname "$0")/.."

export COMPOSE_PROJECT_NAME=gmerging-smoke
export GMERGING_PUBLISHED_PORT=${SMOKE_PORT:-18000} PROMETHEUS_PUBLISHED_PORT=${SMOKE_PROMETHEUS_PORT:-19090}
export GMERGING_WORKERS=1 # several do not tell their CPU time and memory, and the dashboard shows both
SERVICE=http://127.0.0.1:$GMERGING_PUBLISHED_PORT
PROMETHEUS=http://127.0.0.1:$PROMETHEUS_PUBLISHED_PORT
COUNTER='sum(gmerging_requests_total{route="/predict",status="200"})'

say() { printf 'smoke: %s\n' "$*"; }
fail() { say "FAILED: $*"; exit 1; }

finish() {
    local status=$?
    [ "$status" -eq 0 ] || docker compose logs --tail=40 service prometheus || true
    docker compose down --volumes --remove-orphans
    exit "$status"
}

# The first value of an instant query, or nothing.
query() {
    curl --silent --fail --get "$PROMETHEUS/api/v1/query" --data-urlencode "query=$1" | sed -n 's/.*"value":\[[^,]*,"\([^"]*\)"\].*/\1/p'
}

# until_query EXPRESSION: wait until it has a value; it should only have one when what it says is
# true.
until_query() {
    local deadline=$((SECONDS + 90))
    until [ -n "$(query "$1")" ]; do
        [ "$SECONDS" -lt "$deadline" ] || fail "Prometheus does not come to see: $1"
        sleep 1
    done
}

predict() {
    curl --silent --show-error --fail --header 'content-type: application/json' --data "$1" "$SERVICE/predict"
}

trap finish EXIT
docker compose build service
docker compose up --detach --wait --wait-timeout 300 service prometheus
say "service and Prometheus are up"

until_query 'up{job="gmerging"} == 1'
say "Prometheus reports the target up"

answer=$(predict '{"smiles": ["CCO", "not a molecule"]}')
grep -q '"index":0,"smiles":"CCO","tasks":{' <<<"$answer" || fail "no prediction for CCO: $answer"
grep -q '"index":1,"smiles":null,"error":{"code":"smiles_syntax"' <<<"$answer" || fail "no error for what is not a molecule: $answer"
say "/predict answers: ${answer:0:200}..."

until_query "$COUNTER > 0"
before=$(query "$COUNTER")
predict '{"smiles": "CC(=O)Oc1ccccc1C(=O)O"}' >/dev/null
until_query "$COUNTER == $before + 1"
say "a /predict moved its counter in Prometheus from $before to $(query "$COUNTER")"

job=$(printf 'CCO\nc1ccccc1\n' |
    curl --silent --show-error --fail --header 'prefer: respond-async' --form 'file=@-;filename=molecules.smi' "$SERVICE/predict/file")
grep -q '"state":"queued"' <<<"$job" || fail "no job: $job"
until_query 'sum(gmerging_jobs_total{outcome="done"}) == 1'
say "a file became a job, and the job is done"

# New molecules each time, for an answer from the cache takes part in no pass; and longer apart than
# two scrapes are, for rates.
for molecule in CCN CCCO CCCN; do
    for routing in own moe merged; do
        predict "{\"smiles\": [\"$molecule\", \"CCO\", \"[Se]\", \"not a molecule\"], \"routing\": \"$routing\"}" >/dev/null
    done
    predict '{"smiles": "not a molecule"}' 2>/dev/null && fail "what is not a molecule was answered"
    sleep 6
done
shown=$(python3 deploy/query_panels.py "127.0.0.1:$PROMETHEUS_PUBLISHED_PORT" bbb_martins)
say "$shown"

rules=$(curl --silent --fail "$PROMETHEUS/api/v1/rules")
grep -q '"name":"GMergingDown"' <<<"$rules" || fail "Prometheus has not read the alert rules: $rules"
grep -q '"health":"err"' <<<"$rules" && fail "an alert rule cannot be evaluated: $rules"
say "the alert rules are loaded"

docker compose stop service
code=$(docker inspect --format '{{.State.ExitCode}}' "$(docker compose ps --all --quiet service)")
[ "$code" = 0 ] || fail "the service ended with $code when told to stop, expected 0"
say "passed"
