package mqtt

import (
	"strings"
	"unicode/utf8"
)

// gatewayName is the one message about the gateway itself that devices may
// subscribe to: <prefix>/gateway.
const gatewayName = "gateway"

// onlineName is presence on a foreign broker. The embedded one sees
// connections itself: a device may publish it, and nobody hears.
const onlineName = "online"

// maxTopic is the longest topic or filter, bytes (MQTT 5 §1.5.4).
const maxTopic = 65535

// mayWrite reports whether device may publish to topic: its own up/ and
// nothing else.
func (t Topics) mayWrite(device, topic string) bool {
	owner, _, ok := t.Up(topic)
	return ok && owner == device && validTopic(topic)
}

// mayRead reports whether device may subscribe to filter, or receive a topic:
// what lies below its own down/, and the gateway's own message. Neither the
// prefix nor an identifier can hold a wildcard, so comparing the literal
// levels in front compares exactly.
func (t Topics) mayRead(device, filter string) bool {
	if !validFilter(filter) {
		return false
	}
	if filter == t.Prefix+"/"+gatewayName {
		return true
	}
	rest, ok := strings.CutPrefix(filter, t.Prefix+"/"+device+"/down/")
	return ok && rest != ""
}

// validFilter reports whether f is a topic filter: a wildcard fills a level of
// its own, and # is the last (MQTT 5 §4.7.1).
func validFilter(f string) bool {
	if !validString(f) {
		return false
	}
	for more := true; more; {
		var level string
		level, f, more = strings.Cut(f, "/")
		switch {
		case level == "+", level == "#" && !more:
		case strings.ContainsAny(level, "+#"):
			return false
		}
	}
	return true
}

// validTopic reports whether s is a topic to publish to: no wildcards
// (MQTT 5 §3.3.2.1).
func validTopic(s string) bool { return validString(s) && !strings.ContainsAny(s, "+#") }

// validString is what MQTT asks of topics and filters alike (MQTT 5 §1.5.4,
// §4.7.3).
func validString(s string) bool {
	return s != "" && len(s) <= maxTopic && utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
}

// matches reports whether the valid filter f covers topic (MQTT 5 §4.7.1.2:
// "a/#" also covers "a").
func matches(f, topic string) bool {
	if topic[0] == '$' && (f[0] == '+' || f[0] == '#') {
		return false // §4.7.2
	}
	for {
		level, restF, moreF := strings.Cut(f, "/")
		if level == "#" {
			return true
		}
		name, restT, moreT := strings.Cut(topic, "/")
		if level != "+" && level != name {
			return false
		}
		if !moreT {
			return !moreF || restF == "#"
		}
		if !moreF {
			return false
		}
		f, topic = restF, restT
	}
}
