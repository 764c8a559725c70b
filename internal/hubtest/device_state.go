package hubtest

import (
	"fmt"
	"time"
)

// An Inflight is the row that says a device has been told to update.
type Inflight struct {
	UUID       string    `json:"uuid"`       // the target; empty in a phantom row
	Deployment int       `json:"deployment"` // the group it came from; 0 for a manual push
	Status     string    `json:"status"`
	Progress   int       `json:"progress"` // percent, -1 when none is stored
	UpdatedAt  time.Time `json:"updated_at"`

	pushedAt time.Time // when `update` was broadcast; zero in a phantom row
}

// A record is what NervesHub keeps about one device. Its methods decide and
// change it; they are told the time and touch nothing else. Hub.mu guards it.
type record struct {
	id      string
	dbID    int  // the number in the internal topic device:<n>
	deleted bool // soft-deleted: the identifier stays taken

	meta       *Metadata // nil until a join said enough
	validation string    // validated, not_validated, unknown
	reverted   bool
	api        semver
	apiText    string
	iface      string // wifi, ethernet, cellular, unknown; empty since the connect until reported

	product        string // another than the hub's own, which has no group; empty at first
	grouped        bool   // member of the deployment group
	updatesEnabled bool
	inflight       *Inflight
	attempts       []time.Time // since the last success
	blockedUntil   time.Time

	connected   bool // the connection row says connected
	stale       bool // swept; no data frame revives the row
	connectedAt time.Time
	lastSeen    time.Time

	successes, falseSuccesses int
	phantoms                  int
	groupUpdates              int // what this device added to the group's updated counter
	audit                     []string
}

func newRecord(id string, dbID int) record {
	return record{id: id, dbID: dbID, validation: "unknown", updatesEnabled: true, api: semver{major: 1}, apiText: "1.0.0"}
}

const auditLimit = 256 // entries kept per device; the oldest go first

func (r *record) note(format string, args ...any) {
	if len(r.audit) == auditLimit {
		r.audit = append(r.audit[:0], r.audit[1:]...)
	}
	r.audit = append(r.audit, fmt.Sprintf(format, args...))
}

// How NervesHub decides whether a device is there
// (NervesHub.Devices.Connections and its stale sweeper).
const (
	seenInterval = 15 * time.Minute // data frames refresh the row this often
	staleAfter   = 21 * time.Minute // rows older than this are swept
	sweepEvery   = time.Minute
)

// connect notes an authenticated socket. The row becomes connected only when
// the device channel is joined.
func (r *record) connect(now time.Time) {
	r.connected, r.stale = false, false
	r.connectedAt, r.lastSeen = now, now
	r.iface = ""
}

func (r *record) disconnect() { r.connected = false }

// seen notes a data frame. The row becomes connected by it even if the device
// channel was never joined.
func (r *record) seen(now time.Time) {
	if !r.stale && now.Sub(r.lastSeen) >= seenInterval {
		r.lastSeen, r.connected = now, true
	}
}

// sweep marks a row nothing was heard of as disconnected.
func (r *record) sweep(now time.Time) bool {
	if !r.connected || now.Sub(r.lastSeen) <= staleAfter {
		return false
	}
	r.connected, r.stale = false, true
	r.note("stale connection")
	return true
}

// Why the orchestrator passes over a device; empty means it is eligible.
func (r *record) ineligible(now time.Time, g *group) string {
	switch {
	case r.deleted:
		return "deleted"
	case !r.grouped:
		return "not in the group"
	case !r.updatesEnabled:
		return "updates disabled"
	case r.meta == nil:
		return "no metadata"
	case r.validation == "not_validated":
		return "not validated"
	case now.Before(r.blockedUntil):
		return "in the penalty box"
	case !r.connected:
		return "not connected"
	case r.meta.UUID == g.release:
		return "up to date"
	case r.inflight != nil:
		return "an update is inflight"
	}
	return ""
}

// park blocks a device that met a limit of the group. The attempts stay, so it
// is blocked again whenever the block has run out.
func (r *record) park(now time.Time, g *group) bool {
	recent := 0
	for _, at := range r.attempts {
		if now.Sub(at) < g.FailureRateWindow {
			recent++
		}
	}
	if len(r.attempts) < g.FailureThreshold && recent < g.FailureRateAmount {
		return false
	}
	r.blockedUntil = now.Add(g.Penalty)
	r.note("automatically blocked firmware upgrades for %d minutes. Device failure rate met", int(g.Penalty.Minutes()))
	return true
}

// offer writes the inflight row of an update that is broadcast now.
func (r *record) offer(now time.Time, uuid string, deployment int) {
	r.inflight = &Inflight{UUID: uuid, Deployment: deployment, Status: "requested", Progress: -1, UpdatedAt: now, pushedAt: now}
	r.note("update triggered: %s", uuid)
}

// expire deletes an inflight row that did not change for the given time. The
// device is not told.
func (r *record) expire(now time.Time, after time.Duration) bool {
	if r.inflight == nil || now.Sub(r.inflight.UpdatedAt) < after {
		return false
	}
	r.note("inflight update expired")
	r.inflight = nil
	return true
}

// pardon is an operator clearing the penalty box.
func (r *record) pardon() {
	r.attempts, r.blockedUntil = nil, time.Time{}
	r.note("penalty box cleared")
}
