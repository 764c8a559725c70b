#!/usr/bin/env bash
# A device made of mosquitto_sub, mosquitto_pub, curl and jq. Environment:
#
#   HOST PORT ID       of the broker, and who the device is
#   UUID VERSION       what it runs at first; PRODUCT PLATFORM ARCHITECTURE
#   PROTOCOL           mqttv311 or mqttv5
#   FOREIGN            1 on a broker that is not the gateway's own
#
# It says hello, takes an update, reports progress, reboots into the new
# firmware, is rebooted by command, and ends with 0 after its last hello. What it
# heard is on its standard output.
#
# On the gateway's broker the client id is the device, so that mosquitto_sub and
# mosquitto_pub take turns: the device is away for a moment each time it speaks,
# and gets what waited for it when it listens again. On a foreign broker a
# publisher is anybody, and mosquitto_sub hears it all.
set -euo pipefail
down=nh/$ID/down up=nh/$ID/up
patience=${PATIENCE:-60} # seconds for anything that has to happen
work=$(mktemp -d)
sub=
trap 'test -z "$sub" || kill -KILL "$sub" 2>/dev/null || true; cat "$work"/heard.* 2>/dev/null || true; rm -rf "$work"' EXIT

say() { # NAME PAYLOAD [OPTION]...
	local who=()
	if test "${FOREIGN:-}" != 1; then
		who=(-i "$ID")
		hush
	fi
	mosquitto_pub -h "$HOST" -p "$PORT" -V "$PROTOCOL" -u "$ID" ${who[@]+"${who[@]}"} -q 1 -t "$up/$1" -m "$2" "${@:3}"
	echo "say $1 $2"
	test "${FOREIGN:-}" = 1 || listen
}

listen() {
	local will=()
	test "${FOREIGN:-}" != 1 || will=(--will-topic "$up/online" --will-payload 0 --will-qos 1 --will-retain)
	# retain flag, topic, expiry of the message (MQTT 5), payload
	mosquitto_sub -h "$HOST" -p "$PORT" -V "$PROTOCOL" -u "$ID" -i "$ID" -q 1 -t "$down/#" -t nh/gateway \
		${will[@]+"${will[@]}"} -F 'hear %r %t [%E] %p' >>"$work/heard.$boots" 2>>"$work/err.$boots" &
	sub=$!
	disown "$sub" # its end is no news
}

hush() { # without DISCONNECT, as the loss of power
	kill -KILL "$sub"
	sub=
}

boots=0
boot() { # a device starts: connect, subscribe
	boots=$((boots + 1))
	heard=$work/heard.$boots
	listen
	await "^hear [01] nh/gateway \[[0-9]*\] \{\"state\":\"online\"" >/dev/null # so we are subscribed
	test "${FOREIGN:-}" != 1 || say online 1 -r
}

await() { # REGEX: waits for a line of this boot, and prints the last one
	local end=$((SECONDS + patience))
	until grep -E "$1" "$heard" | tail -n 1 | grep .; do
		test $SECONDS -lt $end || { echo "mosquitto.sh: nothing like $1 in $patience s; boot $boots heard:" >&2; cat "$heard" "$work/err.$boots" >&2; exit 1; }
		sleep 0.1
	done
}

hello() { # VALIDATED
	say hello "{\"v\":1,\"version\":\"$VERSION\",\"uuid\":\"$UUID\",\"product\":\"$PRODUCT\",\"platform\":\"$PLATFORM\",\"architecture\":\"$ARCHITECTURE\",\"validated\":$1}"
}

flash() { sleep 0.4; } # what the device's flash needs for a part of the image

greeted() { # the hello has been heard
	test "${FOREIGN:-}" != 1 || await "^hear 0 $down/update \[[0-9]*\] $" >/dev/null # nothing more to install
}

boot
hello true
await "^hear [01] $down/link \[[0-9]*\] up" >/dev/null
echo ready

# the update: NervesHub's own payload, not retained
update=$(await "^hear [01] $down/update \[[0-9]*\] \{")
case $update in "hear 0 "*) ;; *) echo "mosquitto.sh: the update is retained" >&2; exit 1 ;; esac
update=${update#*] }
say status started
say progress 10
curl -fsS -o "$work/image" "$(jq -r .firmware_url <<<"$update")"
sum=$(sha256sum "$work/image" | tr a-f A-F)
test "${sum%% *}" = "$(jq -r .checksum <<<"$update")" || { echo "mosquitto.sh: the image is not what was offered" >&2; exit 1; }
say progress '{"value":55,"stage":"downloading"}'
flash
say progress '{"value":30.5,"stage":"updating"}'
flash
say progress 100
flash
say status completed
say rebooting ''
hush

UUID=$(jq -r .firmware_meta.uuid <<<"$update") VERSION=$(jq -r .firmware_meta.version <<<"$update")
boot
hello false
greeted
say validated ''

# an operator says reboot
reboot=$(await "^hear [01] $down/reboot ")
[[ $reboot =~ ^hear\ 0\ .*\]\ \{\"ref\":[0-9]{10}\}$ ]] || { echo "mosquitto.sh: no command: $reboot" >&2; exit 1; }
if test "$PROTOCOL" = mqttv5 && test "${FOREIGN:-}" != 1; then
	[[ $reboot =~ \[[0-9]+\] ]] || { echo "mosquitto.sh: the command does not expire: $reboot" >&2; exit 1; }
fi
say rebooting ''
hush
boot
hello true
greeted
if grep -h " $down/error " "$work"/heard.*; then
	echo "mosquitto.sh: the gateway refused something" >&2
	exit 1
fi
hush
