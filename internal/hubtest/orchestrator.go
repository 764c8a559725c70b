package hubtest

import (
	"cmp"
	"slices"
	"time"
)

// lookDelay is how long the orchestrator takes to react when it has not looked
// for a while; 7 to 14 ms on the real server.
const lookDelay = 8 * time.Millisecond

// trigger makes the orchestrator look at the group, at most once every
// ScheduleEvery; a trigger in between is served at the end of that time.
func (h *Hub) trigger(now time.Time) {
	if !h.lookAt.IsZero() {
		return
	}
	h.lookAt = now.Add(min(lookDelay, h.cfg.ScheduleEvery))
	if next := h.lastLook.Add(h.cfg.ScheduleEvery); next.After(h.lookAt) {
		h.lookAt = next
	}
	h.later(h.lookAt, h.look)
}

// tick is the orchestrator's own timer.
func (h *Hub) tick(now time.Time) {
	h.trigger(now)
	h.later(now.Add(h.cfg.TimerEvery+chance(h.cfg.TimerEvery/6)), h.tick)
}

// look offers the release to the devices that may have it, those first that
// connected first, while there are slots.
func (h *Hub) look(now time.Time) {
	h.lastLook, h.lookAt = now, time.Time{}
	fw := h.firmware[h.group.release]
	if fw == nil {
		return
	}
	slots := h.group.Concurrent
	var eligible []*device
	for _, d := range h.devices {
		if d.inflight != nil && d.inflight.Deployment != 0 {
			slots--
		}
		if d.ineligible(now, &h.group) == "" {
			eligible = append(eligible, d)
		}
	}
	slices.SortFunc(eligible, func(a, b *device) int {
		return cmp.Or(a.connectedAt.Compare(b.connectedAt), a.dbID-b.dbID)
	})
	for _, d := range eligible {
		if slots <= 0 {
			return
		}
		if d.park(now, &h.group) {
			h.say(d.id, "parked: too many update attempts")
			continue
		}
		slots--
		d.offer(now, fw.UUID, h.group.ID)
		h.say(d.id, "update to "+fw.Version+" pushed")
		// Whether a channel is there to hear it does not matter to the server.
		h.broadcast(d.topic(), "update", fw.updatePayload(h.webURL, h.group.ID))
	}
}

// expire deletes inflight rows nothing happened to; nothing is told to anyone,
// the orchestrator included.
func (h *Hub) expire(now time.Time) {
	for _, d := range h.devices {
		if d.record.expire(now, h.cfg.InflightExpiry) {
			h.say(d.id, "inflight update expired")
		}
	}
	h.later(now.Truncate(h.cfg.ExpiryEvery).Add(h.cfg.ExpiryEvery), h.expire)
}

// sweep marks devices as disconnected that were not heard of for long.
func (h *Hub) sweep(now time.Time) {
	for _, d := range h.devices {
		if d.record.sweep(now) {
			h.say(d.id, "stale connection")
		}
	}
	h.later(now.Add(sweepEvery), h.sweep)
}
