package hubtest

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// statuses is the enum of NervesHub.Devices.InflightUpdate; any other word
// fails its cast and crashes the channel.
var statuses = []string{
	"requested", "rescheduled", "ignored", "received", "started",
	"downloading", "updating", "completed", "failed", "expired",
}

// persistEvery is how often progress is written while the status stays the same.
const persistEvery = 15 * time.Second

// A crash says why a channel process died; empty means it lives.
type crash string

// status handles status_update.
func (r *record) status(now time.Time, payload json.RawMessage, g *group) crash {
	p, _ := decode(payload).(map[string]any)
	word, ok := p["status"].(string)
	if !ok {
		return "status_update without a string status"
	}
	reason, given := p["reason"]
	if strings.Contains(strings.ToLower(word), "fwup error") {
		word, reason, given = "failed", "fwup error", true
	}
	if !slices.Contains(statuses, word) {
		return crash(fmt.Sprintf("unknown status %q", word))
	}
	if _, ok := reason.(string); given && reason != nil && !ok {
		return "reason is not a string"
	}
	delay, delayed := p["delay_for"]
	if c := checkDelay(word, delay, delayed); c != "" {
		return c
	}
	if c := r.race(now); c != "" {
		return c
	}
	terminal := word == "failed" || word == "ignored" || word == "rescheduled" && delayed
	if terminal && r.inflight == nil {
		return crash(word + " without an inflight update")
	}
	switch {
	case terminal:
		r.attempt(now)
		r.end(now, word, reason, delay, g)
	case word == "downloading" || word == "updating":
		value, ok := p["progress"]
		if !ok {
			value = unchanged{}
		}
		return r.persist(now, word, value)
	default:
		r.row(now)
		r.attempt(now)
		r.set(now, word, r.inflight.Progress)
	}
	return ""
}

func checkDelay(word string, delay any, given bool) crash {
	if word != "rescheduled" || !given {
		return ""
	}
	if n, ok := delay.(json.Number); !ok || !isInteger(n) {
		return "delay_for is not an integer"
	}
	return ""
}

// progress handles fwup_progress and update_progress.
func (r *record) progress(now time.Time, payload json.RawMessage) crash {
	p, _ := decode(payload).(map[string]any)
	value, ok := p["value"]
	if !ok {
		return "" // ignored
	}
	word := "updating"
	if n, ok := value.(json.Number); ok && n == "100" {
		word, value = "completed", nil
	}
	if stage, ok := p["stage"]; ok && stage != nil {
		word, _ = stage.(string)
		if !slices.Contains(statuses, word) {
			return crash(fmt.Sprintf("unknown stage %v", stage))
		}
		value = p["value"]
	}
	if c := r.race(now); c != "" {
		return c
	}
	return r.persist(now, word, value)
}

// commitRace is how long after the broadcast of `update` the transaction that
// inserts the row is still open: a status that arrives in it hits a unique
// constraint. On the real server answers after a few milliseconds crashed and
// those after 500 ms never did.
const commitRace = 250 * time.Millisecond

func (r *record) race(now time.Time) crash {
	if row := r.inflight; row != nil && row.Status == "requested" && now.Sub(row.pushedAt) < commitRace {
		return "status within the commit of the inflight update"
	}
	return ""
}

// row makes sure there is an inflight row: a status or progress out of the
// blue creates an empty one, which keeps real updates away until it expires.
func (r *record) row(now time.Time) {
	if r.inflight == nil {
		r.inflight = &Inflight{Status: "requested", Progress: -1, UpdatedAt: now}
		r.phantoms++
	}
}

// attempt counts the first status or progress of a row, whatever it says.
func (r *record) attempt(now time.Time) {
	if r.inflight.Status == "requested" {
		r.attempts = append(r.attempts, now)
	}
}

// set stores a status. Storing what is there already changes nothing, not even
// the time of the last change.
func (r *record) set(now time.Time, word string, progress int) {
	if r.inflight.Status != word || r.inflight.Progress != progress {
		r.inflight.Status, r.inflight.Progress, r.inflight.UpdatedAt = word, progress, now
	}
}

// unchanged stands for a progress that was not sent.
type unchanged struct{}

// persist stores progress if the status changed or enough time has passed; a
// value the column cannot hold crashes only when it is stored.
func (r *record) persist(now time.Time, word string, value any) crash {
	if row := r.inflight; row != nil && row.Status == word && now.Sub(row.UpdatedAt) < persistEvery {
		return ""
	}
	progress := -1
	switch v := value.(type) {
	case nil:
	case unchanged:
		if r.inflight != nil {
			progress = r.inflight.Progress
		}
	case json.Number:
		if !isInteger(v) {
			return "progress is not an integer"
		}
		progress, _ = strconv.Atoi(v.String())
	case string:
		n, err := strconv.Atoi(v)
		if err != nil {
			return "progress is not a number"
		}
		progress = n
	default:
		return "progress is not a number"
	}
	r.row(now)
	r.attempt(now)
	r.set(now, word, progress)
	return ""
}

// end handles failed, ignored and rescheduled with a delay: the row goes, and
// an update that came from the group blocks the device.
func (r *record) end(now time.Time, word string, reason, delay any, g *group) {
	block := g.Penalty
	if word == "rescheduled" {
		ms, _ := delay.(json.Number).Int64()
		block = time.Duration(min(ms, math.MaxInt64/int64(time.Millisecond))) * time.Millisecond
	}
	if r.inflight.Deployment != 0 {
		r.blockedUntil = now.Add(block)
	}
	r.inflight = nil
	if text, _ := reason.(string); text != "" {
		r.note("update %s: %s", word, text)
	} else {
		r.note("update %s", word)
	}
}

// validated handles firmware_validated.
func (r *record) validated() crash {
	if r.meta == nil {
		return "firmware_validated with nothing on record"
	}
	r.validation = "validated"
	r.note("firmware validated")
	return ""
}

// report handles report_network_interface.
func (r *record) report(payload json.RawMessage) {
	p, _ := decode(payload).(map[string]any)
	v, ok := p["interface"]
	if !ok {
		return
	}
	name, _ := v.(string)
	switch {
	case strings.HasPrefix(name, "wlan"):
		r.iface = "wifi"
	case strings.HasPrefix(name, "eth"), strings.HasPrefix(name, "en"):
		r.iface = "ethernet"
	case strings.HasPrefix(name, "wwan"):
		r.iface = "cellular"
	default:
		r.iface = "unknown"
	}
}
