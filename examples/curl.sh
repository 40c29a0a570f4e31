#!/usr/bin/env bash
# Ask with curl alone: what is served, a prediction that tells of its progress, the same as JSON and as a video, and a
# session of two steps. Writes its answers beside where it is started.
#
#   examples/curl.sh [http://127.0.0.1:8000]
set -euo pipefail
server=${1:-http://127.0.0.1:8000}
ask() { curl --fail-with-body --silent --show-error -H 'content-type: application/json' "$@"; }

ask "$server/v1/models" -o models.json
echo "served: $(grep -o '"id":"[^"]*"' models.json)"

foreframe predict --print-request > request.json    # a recorded clip; yours come from a camera
ask "$server/v1/predictions" -H 'accept: text/event-stream' -d @request.json | grep '^event:' | sort | uniq -c
ask "$server/v1/predictions" -d @request.json -o prediction.json
echo "as JSON: $(wc -c < prediction.json) bytes, $(grep -o '"cache":"[^"]*"' prediction.json)"
ask "$server/v1/predictions" -H 'accept: video/mp4' -d @request.json -o future.mp4
echo "as a video: $(wc -c < future.mp4) bytes"

# Standing still for two frames, from a clip that comes with the model: the session's last row again.
ask "$server/v1/sessions" -d '{"clip": 0}' -o session.json
id=$(sed -E 's/.*"session_id":"([^"]+)".*/\1/' session.json)
row=$(sed -E 's/.*"state":(\[[^]]*\]).*/\1/' session.json)
for step in 1 2; do
    ask "$server/v1/sessions/$id/steps" -H 'accept: image/png' -d "{\"step_id\": $step, \"future\": {\"values\": [$row]}}" \
        -o "step-$step.png"
    echo "step $step: $(wc -c < "step-$step.png") bytes"
done
ask "$server/v1/sessions/$id" -X DELETE
