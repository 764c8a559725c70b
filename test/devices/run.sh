#!/usr/bin/env bash
# Plays the gateway against clients that share no code with it: mosquitto_pub and
# mosquitto_sub (3.1.1 and 5), mqtt.js (3.1.1 and 5) and paho C, first on its own
# broker, then through Mosquitto as a foreign one. NervesHub is `ganglion hub`,
# and what it has on record decides.
#
# Needs mosquitto, mosquitto-clients, node, npm, cc, libpaho-mqtt-dev, curl and
# jq. GANGLION names a built program; without it one is built.
set -euo pipefail
cd "$(dirname "$0")"
work=$(mktemp -d)
started=()
cleanup() {
	for pid in ${started[@]+"${started[@]}"} $(jobs -p); do kill -TERM "$pid" 2>/dev/null || true; done
	wait
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

if test -z "${GANGLION:-}"; then
	GANGLION=$work/ganglion
	(cd ../.. && go build -o "$GANGLION" ./cmd/ganglion)
fi
cc -std=c11 -Wall -Wextra -Werror -O1 -o "$work/paho-c" paho-c/device.c -lpaho-mqtt3c
test -d mqttjs/node_modules || (cd mqttjs && npm ci --ignore-scripts --no-audit --no-fund >&2)

# ready FILE REGEX: waits until a process has written that line, and prints it.
ready() {
	touch "$1"
	local end=$((SECONDS + 20))
	until grep -E -m 1 "$2" "$1"; do
		test $SECONDS -lt $end || { echo "nothing like $2 in 20 s:" >&2; cat "$1" >&2; return 1; }
		sleep 0.1
	done
}

clients=(mosquitto-311 mosquitto-5 mqttjs-311 mqttjs-5 paho-c-311)
new=3c55399b-96d9-5a6a-2a3c-4dc82b781299
issue=()
for broker in embedded foreign; do
	for client in "${clients[@]}"; do issue+=(--issue "$broker-$client"); done
done
"$GANGLION" hub --listen 127.0.0.1:0 --web 127.0.0.1:0 --api 127.0.0.1:0 --dir "$work/hub" --schedule-every 200ms \
	"${issue[@]}" >"$work/hub.log" 2>&1 &
started+=($!)
line=$(ready "$work/hub.log" '^ready ')
[[ $line =~ devices=([^ ]+)\ web=([^ ]+)\ api=([^ ]+) ]]
url=${BASH_REMATCH[1]} api=${BASH_REMATCH[3]}
curl -fsS -o /dev/null "$api/firmware" \
	-d "{\"uuid\":\"$new\",\"product\":\"demo\",\"version\":\"1.1.0\",\"platform\":\"mcu\",\"architecture\":\"arm\",\"size\":200000}"

# gateway NAME MQTT-SECTION: runs one until it is stopped, and sets $gateway.
gateway() {
	cat >"$work/$1.yaml" <<-YAML
		id: $1
		state_dir: $work/state-$1
		hub: {url: "$url", ca_file: $work/hub/hub-root.pem, dials_per_second: 50}
		identity: {directory: {path: $work/hub/devices}}
		mqtt: $2
		web: {listen: ""}
	YAML
	"$GANGLION" run --config "$work/$1.yaml" >"$work/$1.log" 2>&1 &
	gateway=$!
	started+=("$gateway")
	ready "$work/$1.log" 'msg=ready ' >"$work/$1.ready"
}

# mosquitto_on_loopback starts one on a free port, and sets $port. The rules are
# those for operators; a user name is taken for what it says.
mosquitto_on_loopback() {
	install -m 644 ../../deploy/mosquitto.acl "$work/acl"
	chmod 755 "$work"
	for _ in 1 2 3 4 5; do
		port=$((20000 + RANDOM % 12000))
		printf 'listener %d 127.0.0.1\nallow_anonymous true\npersistence false\nacl_file %s\n' "$port" "$work/acl" >"$work/mosquitto.conf"
		mosquitto -c "$work/mosquitto.conf" >"$work/mosquitto.log" 2>&1 &
		local pid=$!
		if ready "$work/mosquitto.log" 'running|Address already in use' | grep -q running; then
			started+=("$pid")
			return
		fi
		wait "$pid" || true
	done
	echo "no free port for mosquitto" >&2
	return 1
}

# play BROKER CLIENT: one device's life.
play() {
	export ID=$1-$2 HOST=127.0.0.1 PORT=$port UUID=8b0f9d54-52c9-5a0e-9c3a-5f1c8f7a1000 VERSION=1.0.0 \
		PRODUCT=demo PLATFORM=mcu ARCHITECTURE=arm FOREIGN=0 PROTOCOL=mqttv311
	test "$1" = embedded || FOREIGN=1
	case $2 in *-5) PROTOCOL=mqttv5 ;; esac
	case $2 in
	mosquitto-*) exec bash mosquitto.sh ;;
	mqttjs-*) exec node mqttjs/device.mjs ;;
	paho-c-*) exec "$work/paho-c" ;;
	esac
}

# operate ID: reboots the device once NervesHub has its new firmware as validated.
operate() {
	curl -fsS -o /dev/null "$api/devices/$1?wait=metadata.uuid:$new&wait=validation:validated&timeout=60s" &&
		curl -fsS -X POST "$api/devices/$1/reboot"
}

# What NervesHub must have on record of a device's life.
verdict='
def up(e): [.frames[] | select(.dir == "up" and .event == e) | .payload];
def said(s): up("status_update") | any(.status == s);
{
  "received": said("received"),
  "started": said("started"),
  "a progress": (up("fwup_progress") | any(.value > 0 and .value <= 100 and .value == (.value | floor))),
  "completed": said("completed"),
  "the new uuid": (.metadata.uuid == $new),
  "validated": (.validation == "validated"),
  "one update booked": (.successes == 1 and .false_successes == 0 and .phantom_rows == 0),
  "one attempt": ((.attempts | length) == 0 and .inflight == null),
  "the reboot": ([.frames[] | select(.dir == "down" and .event == "reboot")] | length == 1),
  "a channel that never crashed": (.crashes == []),
  "one connection": (.connections == 1 and .evictions == 0)
} | to_entries | map(select(.value | not) | .key) | join(", ")'

passed=0 failed=0
# round BROKER: every client at once, each a device of its own.
round() {
	local client id fault
	declare -A devices operators
	for client in "${clients[@]}"; do
		id=$1-$client
		(play "$1" "$client") >"$work/$id.log" 2>&1 &
		devices[$id]=$!
		operate "$id" >"$work/$id.operator" 2>&1 &
		operators[$id]=$!
	done
	for client in "${clients[@]}"; do
		ready "$work/$1-$client.log" '^ready$' >/dev/null || true # its own deadline says what is wrong
	done
	curl -fsS "$api/release" -d '{"version":"1.1.0"}'
	for client in "${clients[@]}"; do
		id=$1-$client
		fault=
		wait "${operators[$id]}" || fault="the operator gave up: $(tail -n 1 "$work/$id.operator")"
		wait "${devices[$id]}" || fault="${fault:+$fault; }the device ended with $?"
		curl -fsS "$api/devices/$id" >"$work/$id.json"
		missing=$(jq -r --arg new "$new" "$verdict" "$work/$id.json")
		test -z "$missing" || fault="${fault:+$fault; }NervesHub lacks: $missing"
		if test -z "$fault"; then
			passed=$((passed + 1))
			echo "PASS $id: received, started, a progress, the new uuid, validated, a reboot with its ref, no crash"
		else
			failed=$((failed + 1))
			echo "FAIL $id: $fault"
			sed 's/^/     device  | /' "$work/$id.log"
			sed -n "/ $id /s/^/     hub     | /p" "$work/hub.log"
			sed -n "/device=$id/s/^/     gateway | /p" "$work/$1.log"
		fi
	done
}

# stop ends the gateway as an operator does.
stop() {
	local begun=$SECONDS status=0
	kill -TERM "$gateway"
	wait "$gateway" || status=$?
	if test $status -eq 0 && test $((SECONDS - begun)) -le 5; then
		passed=$((passed + 1))
		echo "PASS $1: SIGTERM ends the gateway with 0 in time"
	else
		failed=$((failed + 1))
		echo "FAIL $1: SIGTERM ended the gateway with $status after $((SECONDS - begun)) s"
		tail -n 20 "$work/$1.log"
	fi
}

gateway embedded '{embedded: {listen: "127.0.0.1:0"}}'
port=$(sed -n 's/.* mqtt=127\.0\.0\.1:\([0-9]*\).*/\1/p' "$work/embedded.ready")
round embedded
stop embedded

mosquitto_on_loopback
gateway foreign "{external: {url: \"mqtt://127.0.0.1:$port\", username: ganglion}}"
round foreign
# What is retained on the foreign broker: state, and no command and no update.
kept=$(mosquitto_sub -h 127.0.0.1 -p "$port" -u ganglion -t 'nh/#' --retained-only -W 2 -F %t 2>/dev/null || true)
if unexpected=$(grep -v -E '^nh/gateway$|^nh/[^/]*/(down/link|up/online)$' <<<"$kept") || ! grep -q '/down/link$' <<<"$kept"; then
	failed=$((failed + 1))
	echo "FAIL foreign: retained on the broker: ${unexpected:-no link}"
else
	passed=$((passed + 1))
	echo "PASS foreign: only state is retained on the broker"
fi
# The rules: a device may read its own topics and the gateway's, of all there are.
mosquitto_pub -h 127.0.0.1 -p "$port" -u foreign-paho-c-311 -q 1 -r -t nh/foreign-mqttjs-311/up/online -m 2
seen=$(mosquitto_sub -h 127.0.0.1 -p "$port" -u foreign-paho-c-311 -t 'nh/#' -t nh/foreign-mqttjs-311/up/online \
	--retained-only -W 2 -F '%t' 2>/dev/null | sort -u | tr '\n' ' ' || true)
kept=$(mosquitto_sub -h 127.0.0.1 -p "$port" -u ganglion -t nh/foreign-mqttjs-311/up/online --retained-only -C 1 -W 2 || true)
if test "$seen" = 'nh/foreign-paho-c-311/down/link nh/gateway ' && test "$kept" != 2; then
	passed=$((passed + 1))
	echo "PASS foreign: deploy/mosquitto.acl keeps a device to its own topics"
else
	failed=$((failed + 1))
	echo "FAIL foreign: with deploy/mosquitto.acl a device sees $seen, and another's up/online says $kept"
fi
stop foreign

echo "devices: $passed passed, $failed failed"
test $failed -eq 0
