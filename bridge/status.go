package bridge

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"
)

// A State is where a device stands with NervesHub.
type State string

const (
	StateWaiting  State = "waiting"  // for the device to say what it runs
	StateDialing  State = "dialing"  // in the gate, or in the handshake
	StateJoining  State = "joining"  // connected, the join is not answered yet
	StateJoined   State = "joined"   //
	StateRetrying State = "retrying" // after a fault, until Retry
	StateRefused  State = "refused"  // somebody has to act; tried again at Retry
)

// States lists all of them.
func States() []State {
	return []State{StateWaiting, StateDialing, StateJoining, StateJoined, StateRetrying, StateRefused}
}

// A Status is one device at one moment.
type Status struct {
	Device, Class string
	State         State
	Present       bool      // the Bus sees it
	Since         time.Time // of State
	Retry         time.Time // next dial; zero unless retrying or refused
	Cause         string    // why it is retrying or refused, in a word
	Err           string    // the same in a sentence
	UUID, Version string    // what it runs; empty until it said so
	Update        *UpdateStatus
}

// An UpdateStatus is the update a device has been offered.
type UpdateStatus struct {
	UUID, Version, Word string
	Percent             int // -1: not said
}

// Counters are how often each thing has happened since the start. The labels
// come from fixed lists, so their number is bounded.
type Counters struct {
	Joins    uint64            // accepted, re-joins included
	Refusals map[string]uint64 // links that ended or never came up, by cause
	Up       map[string]uint64 // from devices, by name of the contract
	Down     map[string]uint64 // to devices, by name
	Hub      map[string]uint64 // to NervesHub, by event
	FromHub  map[string]uint64 // from NervesHub, by event
	Errors   map[string]uint64 // answered on down/error, by code
	Dropped  map[string]uint64 // by policy
}

// The metrics of a count.
const (
	joins      = "joins"
	refusals   = "refusals"
	fromDevice = "up"
	toDevice   = "down"
	toHub      = "hub"
	fromHub    = "from_hub"
	refusedUp  = "errors"
	dropped    = "dropped"
)

// counters is the Fleet's; mu guards the maps.
type counters struct {
	mu sync.Mutex
	by map[count]uint64
}

func (c *counters) add(counts ...count) {
	if len(counts) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by == nil {
		c.by = map[count]uint64{}
	}
	for _, n := range counts {
		c.by[n]++
	}
}

func (c *counters) snapshot() Counters {
	c.mu.Lock()
	defer c.mu.Unlock()
	of := func(metric string) map[string]uint64 {
		m := map[string]uint64{}
		for k, n := range c.by {
			if k.metric == metric {
				m[k.label] = n
			}
		}
		return m
	}
	return Counters{Joins: c.by[count{joins, "ok"}], Refusals: of(refusals), Up: of(fromDevice), Down: of(toDevice),
		Hub: of(toHub), FromHub: of(fromHub), Errors: of(refusedUp), Dropped: of(dropped)}
}

// Counters returns what has happened since the start.
func (f *Fleet) Counters() Counters { return f.counters.snapshot() }

// Devices returns every device that has a Session, by name.
func (f *Fleet) Devices() []Status {
	f.mu.Lock()
	sessions := slices.Collect(maps.Values(f.sessions))
	f.mu.Unlock()
	all := make([]Status, 0, len(sessions))
	for _, s := range sessions {
		all = append(all, *s.snapshot.Load())
	}
	slices.SortFunc(all, func(a, b Status) int { return cmp.Compare(a.Device, b.Device) })
	return all
}

// status is what the page shows of the core.
func (c *core) view() Status {
	s := Status{Device: c.device, Class: c.class.Name, Present: c.present, UUID: c.runs.UUID, Version: c.runs.Version}
	if u := c.update; u != nil {
		s.Update = &UpdateStatus{UUID: u.image.UUID, Version: u.image.Version, Percent: u.value}
		if u.word != none {
			s.Update.Word = u.word.String()
		}
	}
	return s
}
