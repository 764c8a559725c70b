package hubtest

import (
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// extensionRequests are the extensions the server has, each with what it
// pushes when a device attaches it.
var extensionRequests = map[string]string{
	"health":           "health:check",
	"geo":              "geo:location:request",
	"local_shell":      "local_shell:request_shell",
	"network_identity": "network_identity:request",
	"logging":          "",
}

// healthEvery is FEATURES_HEALTH_INTERVAL_MINUTES.
const healthEvery = time.Hour

// extensionsChannel is NervesHubWeb.ExtensionsChannel.
type extensionsChannel struct{}

// join answers with the keys the device may attach: announced in a compatible
// version and allowed when the socket was authenticated.
func (extensionsChannel) join(s *socket, ch *channel, _ time.Time, payload json.RawMessage) (any, error) {
	ch.attach, ch.attached = []string{}, map[string]bool{}
	announced, _ := decode(payload).(map[string]any)
	for key, v := range announced {
		text, ok := v.(string)
		if !ok {
			return nil, errJoinCrashed
		}
		version, ok := parseSemver(text)
		if _, exists := extensionRequests[key]; exists && ok && s.allowed[key] && compatible(version) {
			ch.attach = append(ch.attach, key)
		}
	}
	slices.Sort(ch.attach)
	return ch.attach, nil
}

// compatible is "~> 0.0.1": below 0.1.0.
func compatible(v semver) bool { return v.atLeast(0, 0, 1) && !v.atLeast(0, 1, 0) }

func (extensionsChannel) joined(*socket, *channel, time.Time) {}

func (extensionsChannel) receive(s *socket, ch *channel, now time.Time, f Frame) crash {
	key, event, _ := strings.Cut(f.Event, ":")
	if !slices.Contains(ch.attach, key) {
		s.reply(ch.joinRef, f.Ref, ch.topic, "error", "detach")
		return ""
	}
	switch {
	case event == "attached":
		ch.attached[key] = true
		s.request(ch, key)
		if key == "health" {
			s.hub.later(now.Add(healthEvery), func(now time.Time) { s.healthCheck(ch, now) })
		}
	case event == "detached" || event == "error":
		delete(ch.attached, key)
	case ch.attached[key]:
		s.dev.extension(now, ch, f)
	}
	return ""
}

func (s *socket) request(ch *channel, key string) {
	if event := extensionRequests[key]; event != "" {
		s.push(ch, nil, event, emptyObject)
	}
}

func (s *socket) healthCheck(ch *channel, now time.Time) {
	if s.channels[ch.key] != ch || !ch.attached["health"] {
		return
	}
	s.request(ch, "health")
	s.hub.later(now.Add(healthEvery), func(now time.Time) { s.healthCheck(ch, now) })
}

// extension stores what an attached extension reports.
func (d *device) extension(now time.Time, ch *channel, f Frame) {
	switch f.Event {
	case "health:report":
		if p, _ := decode(f.Payload).(map[string]any); p["value"] != nil {
			d.health = marshal(p["value"])
		}
	case "geo:location:update":
		d.location = f.Payload
	case "network_identity:report":
		d.identities = f.Payload
	case "logging:send":
		p, _ := decode(f.Payload).(map[string]any)
		if message, ok := logLine(p); ok && ch.bucket.take(now) {
			d.logs = appendBounded(d.logs, message, logLimit)
		}
	}
}

const logLimit = 256 // log lines kept per device; the oldest go first

// logLine is the message of a line that is stored. A line needs a time: a
// string in meta.time, or a timestamp.
func logLine(p map[string]any) (string, bool) {
	meta, _ := p["meta"].(map[string]any)
	if str(meta, "time") == "" && str(p, "timestamp") == "" {
		return "", false
	}
	if text, ok := p["message"].(string); ok {
		return text, true
	}
	return string(marshal(p["message"])), true
}

// A bucket lets through 5 lines per second and 10 at once.
type bucket struct {
	tokens float64
	at     time.Time
}

func (b *bucket) take(now time.Time) bool {
	const rate, capacity = 5, 10
	if b.at.IsZero() {
		b.tokens = capacity
	} else {
		b.tokens = min(capacity, b.tokens+rate*now.Sub(b.at).Seconds())
	}
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

func appendBounded[T any](list []T, v T, limit int) []T {
	if len(list) >= limit {
		list = slices.Delete(list, 0, len(list)-limit+1)
	}
	return append(list, v)
}
