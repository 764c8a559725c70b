package bridge

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"ganglion/mqtt"
	"ganglion/phoenix"
)

var histories = flag.Uint64("histories", 1500, "random histories TestModel plays")

// TestModel plays random histories of a device, its link and a small NervesHub
// against the core. However they fall together, the core never makes the
// server's channel crash, never makes a row out of the blue, and never spins.
func TestModel(t *testing.T) {
	for seed := range *histories {
		m := newModel(seed)
		m.play()
		if m.wrong != "" {
			t.Fatalf("history %d, latency %s: %s\n%s", seed, m.latency, m.wrong, strings.Join(m.log[max(0, len(m.log)-30):], "\n"))
		}
	}
}

// A model is a core, the wire, and what NervesHub would make of it.
type model struct {
	r       *rand.Rand
	c       *core
	latency time.Duration // of the wire, one way
	linked  bool
	up      []delivery // to NervesHub, in order
	down    []delivery // to the core

	hub modelHub

	runs      string // the device's firmware
	validated bool
	log       []string
	wrong     string // the first thing that must not happen
}

type delivery struct {
	at time.Time
	m  phoenix.Message
}

// A modelHub is as much of NervesHub as decides about rows and crashes.
type modelHub struct {
	onRecord, target string
	row              *modelRow
	joinRef          string // of the living channel; "" when it is dead
	connected        bool   // as NervesHub believes
	blocked          time.Time
	looks, expires   time.Time // the orchestrator, and the sweep of old rows, run next
}

type modelRow struct {
	status           string
	percent          int
	pushed, storedAt time.Time
}

func newModel(seed uint64) *model {
	r := rand.New(rand.NewPCG(seed, 1))
	latencies := []time.Duration{0, time.Millisecond, 40 * time.Millisecond, 300 * time.Millisecond}
	start := time.Unix(1e6, 0)
	m := &model{r: r, latency: latencies[r.IntN(len(latencies))], runs: "u0", validated: true,
		hub: modelHub{onRecord: "u0", target: "u1", looks: start, expires: start}}
	m.c = &core{device: "d", class: Class{Linger: 30 * time.Second, CommandTTL: time.Minute, Reschedule: time.Hour},
		beat: 30 * time.Second, phase: 20 * time.Second, now: start}
	return m
}

func (m *model) play() {
	m.c.online(mqtt.Client{})
	m.hello()
	m.connect()
	pauses := []time.Duration{0, 10 * time.Millisecond, 100 * time.Millisecond, 600 * time.Millisecond, 3 * time.Second,
		20 * time.Second, 10 * time.Minute, 31 * time.Minute, 31 * time.Minute, 31 * time.Minute}
	for range 40 {
		m.something()
		m.pass(pauses[m.r.IntN(len(pauses))])
		if !m.linked && m.r.IntN(3) == 0 {
			m.connect()
		}
		if m.wrong != "" {
			return
		}
	}
}

// something happens.
func (m *model) something() {
	switch m.r.IntN(16) {
	case 0:
		m.say("status", "received")
	case 1:
		m.say("status", "started")
	case 2, 3:
		m.say("progress", fmt.Sprint(m.r.IntN(101)))
	case 4:
		m.say("status", "completed")
	case 5:
		m.say("status", "failed x")
	case 6:
		m.say("status", "rescheduled 60000 x")
	case 7:
		m.hello()
	case 8:
		m.validated = !m.validated
		m.hello()
	case 9:
		if u := m.c.update; u != nil && u.word == completed {
			m.runs = u.image.UUID
			m.hello()
		}
	case 10:
		m.say("rebooting", "")
		m.hello()
	case 11:
		m.disconnect("cut")
	case 12:
		m.connect()
	case 13:
		m.crash("an exception of its own")
	case 14:
		m.hub.target = fmt.Sprintf("u%d", 1+m.r.IntN(3))
	case 15:
		m.c.offline()
		m.collect()
		m.pass(time.Duration(m.r.IntN(40)) * time.Second)
		m.c.online(mqtt.Client{})
		m.hello()
	}
}

func (m *model) note(format string, args ...any) {
	m.log = append(m.log, m.c.now.Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

func (m *model) say(name, payload string) {
	m.note("dev %s %.60s", name, payload)
	m.c.received(name, []byte(payload))
	m.collect()
}

func (m *model) hello() {
	m.say("hello", fmt.Sprintf(`{"version":"1.%s.0","uuid":%q,"product":"p","platform":"q","architecture":"a","validated":%t}`, m.runs[1:], m.runs, m.validated))
}

func (m *model) connect() {
	if m.linked || !m.c.wantsLink() {
		return
	}
	m.note("link up")
	m.linked = true
	m.c.linkUp()
	m.collect()
}

func (m *model) disconnect(why string) {
	if !m.linked {
		return
	}
	m.note("link down: %s", why)
	m.linked, m.up, m.down = false, nil, nil
	m.hub.joinRef, m.hub.connected = "", false
	m.c.linkDown()
	m.collect()
}

// collect puts what the core left on the wire.
func (m *model) collect() {
	for _, f := range m.c.hub {
		if m.linked {
			m.up = append(m.up, delivery{m.c.now.Add(m.latency), f})
		}
		if f.Event != "heartbeat" {
			m.note("  hub> %s %.70s", f.Event, f.Payload)
		}
	}
	m.c.hub, m.c.dev, m.c.tally, m.c.notes = nil, nil, nil, nil
}

// push sends a frame to the core.
func (m *model) push(f phoenix.Message) {
	if m.linked {
		m.down = append(m.down, delivery{m.c.now.Add(m.latency), f})
	}
}

func (m *model) crash(why string) {
	if m.hub.joinRef == "" {
		return
	}
	m.note("  the channel crashes: %s", why)
	m.push(phoenix.Message{JoinRef: m.hub.joinRef, Ref: m.hub.joinRef, Topic: channel, Event: "phx_error", Payload: json.RawMessage(`{}`)})
	m.hub.joinRef = ""
}

func (m *model) fault(what string) {
	if m.wrong == "" {
		m.wrong = what
	}
	m.note("  WRONG: %s", what)
}

var modelOK = json.RawMessage(`{"status":"ok","response":{}}`)

// arrives handles a frame at NervesHub.
func (m *model) arrives(f phoenix.Message) {
	h := &m.hub
	switch {
	case f.Event == "heartbeat":
		m.push(phoenix.Message{Ref: f.Ref, Topic: heartbeats, Event: "phx_reply", Payload: modelOK})
	case f.Event == "phx_join":
		var p struct {
			UUID        string `json:"nerves_fw_uuid"`
			Downloading string `json:"currently_downloading_uuid"`
		}
		json.Unmarshal(f.Payload, &p)
		if p.UUID != h.onRecord {
			h.onRecord, h.row, h.blocked = p.UUID, nil, time.Time{}
		}
		if p.Downloading == "" {
			h.row = nil
		}
		h.joinRef, h.connected = f.JoinRef, true
		m.push(phoenix.Message{JoinRef: f.JoinRef, Ref: f.Ref, Topic: channel, Event: "phx_reply", Payload: modelOK})
	case f.JoinRef != h.joinRef:
	case f.Event == "status_update" || f.Event == "fwup_progress":
		m.reported(f.Payload)
	}
}

// reported handles a status or a progress as NervesHub does.
func (m *model) reported(payload json.RawMessage) {
	var p struct {
		Status, Stage string
		Value         *int
		Delay         int `json:"delay_for"`
	}
	json.Unmarshal(payload, &p)
	h, now, word := &m.hub, m.c.now, first(p.Status, p.Stage)
	terminal := word == "failed" || word == "ignored" || word == "rescheduled"
	switch {
	case h.row != nil && h.row.status == "requested" && now.Sub(h.row.pushed) < 250*time.Millisecond:
		m.fault("a status within the commit of its update")
		return
	case h.row == nil && terminal:
		m.fault("a terminal status without a row")
		return
	case h.row == nil:
		m.fault("a row out of the blue, by " + word)
		return
	case terminal:
		h.row, h.blocked = nil, now.Add(24*time.Hour)
		if word == "rescheduled" {
			h.blocked = now.Add(time.Duration(p.Delay) * time.Millisecond)
		}
		return
	}
	percent := h.row.percent
	if p.Value != nil {
		if h.row.status == word && now.Sub(h.row.storedAt) < storeEvery {
			return // shown, not stored
		}
		percent = *p.Value
	}
	if h.row.status != word || h.row.percent != percent {
		h.row.status, h.row.percent, h.row.storedAt = word, percent, now
	}
}

// sweep runs what NervesHub runs by the clock.
func (m *model) sweep() {
	h, now := &m.hub, m.c.now
	if !now.Before(h.looks) {
		h.looks = now.Add(3 * time.Second)
		if h.connected && h.row == nil && !now.Before(h.blocked) && h.onRecord != h.target {
			m.note("NervesHub offers %s", h.target)
			h.row = &modelRow{status: "requested", percent: -1, pushed: now, storedAt: now}
			if h.joinRef != "" { // else it is lost
				p := fmt.Sprintf(`{"update_available":true,"firmware_url":"http://x","firmware_meta":{"uuid":%q,"version":"1.%s.0"}}`, h.target, h.target[1:])
				m.push(phoenix.Message{Topic: channel, Event: "update", Payload: json.RawMessage(p)})
			}
		}
	}
	if !now.Before(h.expires) {
		h.expires = now.Add(5 * time.Minute)
		if h.row != nil && now.Sub(h.row.storedAt) >= rowLife {
			m.note("the row expires")
			h.row = nil
		}
	}
}

// pass lets time go by, stopping wherever something is due.
func (m *model) pass(d time.Duration) {
	end := m.c.now.Add(d)
	for same := 0; ; same++ {
		next := earliest(end, m.c.deadline(), m.hub.looks, m.hub.expires)
		for _, wire := range [][]delivery{m.up, m.down} {
			if len(wire) > 0 {
				next = earliest(next, wire[0].at)
			}
		}
		if next.After(m.c.now) {
			m.c.now, same = next, 0
		}
		if same > 300 {
			m.fault("the core is never done")
			return
		}
		if !m.step() && !m.c.now.Before(end) {
			return
		}
	}
}

// step does what is due now, and reports whether anything was.
func (m *model) step() (busy bool) {
	for len(m.up) > 0 && !m.up[0].at.After(m.c.now) {
		f := m.up[0]
		m.up, busy = m.up[1:], true
		m.arrives(f.m)
	}
	m.sweep()
	for len(m.down) > 0 && !m.down[0].at.After(m.c.now) {
		f := m.down[0]
		m.down, busy = m.down[1:], true
		if err := m.c.fromHub(f.m); err != nil {
			m.disconnect(err.Error())
			return true
		}
		m.collect()
	}
	if !due(m.c.deadline(), m.c.now) {
		return busy
	}
	if m.c.over() { // its Session ends; the next one remembers
		m.disconnect("the device is gone")
		m.c.present, m.c.greeted, m.c.leaveAt = false, false, time.Time{}
		return true
	}
	if err := m.c.tick(); err != nil {
		m.disconnect(err.Error())
		return true
	}
	m.collect()
	return true
}
