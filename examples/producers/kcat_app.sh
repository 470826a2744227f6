#!/bin/sh
# Record an answer of an app's own model and a user's thumbs up with kcat (https://github.com/edenhill/kcat).
#
#   export KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:9092 LOOPWRIGHT_PSEUDONYM_KEY=...   # as the services have them
#   sh examples/producers/kcat_app.sh my-app-answer-1
#
# With LOOPWRIGHT_NAMESPACE=staging the topics are staging.chat.responses and staging.feedback.events. For TLS and SASL,
# write librdkafka properties into a file and set KCAT_CONFIG to its path.
set -eu
response_id=$1
prefix=${LOOPWRIGHT_NAMESPACE:+$LOOPWRIGHT_NAMESPACE.}
now=$(date -u +%Y-%m-%dT%H:%M:%SZ)
# The user's pseudonym: u_ and 32 hex digits of HMAC-SHA256. Never send the id itself: it could not be erased.
user=u_$(printf %s ann | openssl dgst -sha256 -hmac "$LOOPWRIGHT_PSEUDONYM_KEY" -r | cut -c 1-32)

# send TOPIC CE_TYPE CE_ID < record: the key is the response_id, and the partitioner is that of Java clients.
send() {
    kcat -P -b "$KAFKA_BOOTSTRAP_SERVERS" -t "$prefix$1" -k "$response_id" \
        -X topic.acks=all -X enable.idempotence=true -X topic.partitioner=murmur2_random \
        -H ce_specversion=1.0 -H "ce_id=$3" -H ce_source=/my-app -H "ce_type=$2" -H "ce_time=$now" \
        -H content-type=application/json
}

printf %s '{"line":"assistant","response_id":"'"$response_id"'","version":"my-model-2026-01",
"messages":[{"role":"user","content":"Who founded Pellworth?"}],"choices":[{"index":0,"text":"Orla Fenwick."}],
"user_id":"'"$user"'","created_at":"'"$now"'"}' | tr '\n' ' ' |
    send chat.responses loopwright.chat.response "$response_id"

printf %s '{"line":"assistant","response_id":"'"$response_id"'","event_id":"ann-thumbs","user_id":"'"$user"'",
"kind":"thumbs","value":"up","received_at":"'"$now"'"}' | tr '\n' ' ' |
    send feedback.events loopwright.feedback.thumbs "$response_id/ann-thumbs"
