package hubtest

import (
	"encoding/json"
	"strconv"
	"time"
)

// What is kept per device; the oldest entries go first.
const (
	frameLimit = 256
	crashLimit = 64
)

// A device is a record with the things around it that are not NervesHub's
// database. Hub.mu guards it.
type device struct {
	record

	socket *socket // the newest; nil when offline
	params joinParams
	delay  time.Duration

	connections, evictions, joins, refused, heartbeats int

	frames  []Frame
	crashes []Crash
	scripts map[string]chan scriptResult // by ref, waiting for an answer

	consoleVersion  string
	connectionTypes json.RawMessage
	health          json.RawMessage
	location        json.RawMessage
	identities      json.RawMessage
	logs            []string
}

// A Crash is the end of a channel process.
type Crash struct {
	Time   time.Time `json:"time"`
	Topic  string    `json:"topic"`
	Reason string    `json:"reason"`
}

// device returns the device of that name, new if need be.
func (h *Hub) device(id string) *device {
	d := h.devices[id]
	if d == nil {
		d = &device{record: newRecord(id, len(h.devices)+1), scripts: map[string]chan scriptResult{}}
		h.devices[id] = d
	}
	return d
}

// topic is the internal name of the device's channel.
func (d *device) topic() string { return "device:" + strconv.Itoa(d.dbID) }

func (d *device) consoleTopic() string { return "console:" + strconv.Itoa(d.dbID) }

func (d *device) crashed(now time.Time, topic, reason string) {
	d.crashes = appendBounded(d.crashes, Crash{now, topic, reason}, crashLimit)
}

// joinDone counts joins of the device channel.
func (d *device) joinDone(ch *channel, err error) {
	switch {
	case ch.topic != "device":
	case err != nil:
		d.refused++
	default:
		d.joins++
	}
}

// A DeviceState is what the hub knows of a device at one moment.
type DeviceState struct {
	ID      string `json:"id"`
	Deleted bool   `json:"deleted"`

	Online bool `json:"online"` // the connection row says connected, whatever the device channel does
	Socket bool `json:"socket"` // a socket is open
	Joined bool `json:"joined"` // the device channel is joined and alive
	Stale  bool `json:"stale"`  // swept for lack of data frames

	Connections    int `json:"connections"`
	Evictions      int `json:"evictions"` // by a newer connection
	Joins          int `json:"joins"`     // of the device channel, re-joins included
	Refused        int `json:"refused"`   // joins of the device channel that failed, and dials refused as asked
	HeartbeatsSeen int `json:"heartbeats_seen"`

	Metadata   *Metadata `json:"metadata"`   // nil while nothing is on record
	Validation string    `json:"validation"` // validated, not_validated, unknown
	Reverted   bool      `json:"reverted"`
	APIVersion string    `json:"api_version"`
	Interface  string    `json:"interface"` // wifi, ethernet, cellular, unknown; empty until reported after a connect

	InGroup        bool        `json:"in_group"`
	UpdatesEnabled bool        `json:"updates_enabled"`
	Inflight       *Inflight   `json:"inflight"`
	Attempts       []time.Time `json:"attempts"` // since the last success
	BlockedUntil   time.Time   `json:"blocked_until"`

	Successes      int      `json:"successes"`       // updates in the statistics: joins booked as one, the first report aside
	FalseSuccesses int      `json:"false_successes"` // those of them that changed no firmware
	GroupUpdates   int      `json:"group_updates"`   // this device's part of the group's updated counter
	PhantomRows    int      `json:"phantom_rows"`    // inflight rows made by a status or progress out of the blue
	Audit          []string `json:"audit"`           // the last 256
	Crashes        []Crash  `json:"crashes"`         // the last 64
	Frames         []Frame  `json:"frames"`          // the last 256, both ways

	ConnectionTypes json.RawMessage `json:"connection_types,omitempty"`
	Health          json.RawMessage `json:"health,omitempty"` // value of the last health:report
	Location        json.RawMessage `json:"location,omitempty"`
	Identities      json.RawMessage `json:"identities,omitempty"`
	Logs            []string        `json:"logs,omitempty"` // messages of the last 256 stored log lines
}

// state copies what is known of a device; it is called with mu held.
func (h *Hub) state(id string) (DeviceState, bool) {
	d := h.devices[id]
	if d == nil {
		return DeviceState{}, false
	}
	s := DeviceState{
		ID: d.id, Deleted: d.deleted,
		Online: d.connected, Socket: d.socket != nil, Stale: d.stale,
		Connections: d.connections, Evictions: d.evictions, Joins: d.joins, Refused: d.refused, HeartbeatsSeen: d.heartbeats,
		Metadata: clone(d.meta), Validation: d.validation, Reverted: d.reverted, APIVersion: d.apiText, Interface: d.iface,
		InGroup: d.grouped, UpdatesEnabled: d.updatesEnabled, Inflight: clone(d.inflight),
		Attempts: append([]time.Time{}, d.attempts...), BlockedUntil: d.blockedUntil,
		Successes: d.successes, FalseSuccesses: d.falseSuccesses, GroupUpdates: d.groupUpdates, PhantomRows: d.phantoms,
		Audit:           append([]string{}, d.audit...),
		Crashes:         append([]Crash{}, d.crashes...),
		Frames:          append([]Frame{}, d.frames...),
		ConnectionTypes: d.connectionTypes, Health: d.health, Location: d.location, Identities: d.identities,
		Logs: append([]string{}, d.logs...),
	}
	if d.socket != nil {
		ch := d.socket.channels[d.topic()]
		s.Joined = ch != nil && !ch.dead
	}
	return s, true
}

func clone[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}
