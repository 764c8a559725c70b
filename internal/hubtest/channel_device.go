package hubtest

import (
	"encoding/json"
	"fmt"
	"time"
)

// deviceChannel is NervesHubWeb.DeviceChannel. It replies to nothing but joins.
type deviceChannel struct{}

func (deviceChannel) join(s *socket, _ *channel, now time.Time, payload json.RawMessage) (any, error) {
	h, d := s.hub, s.dev
	switch {
	case h.take(d.id, RefuseJoin):
		return nil, fmt.Errorf("%w: asked for", errJoinCrashed)
	case h.take(d.id, RefuseEntry):
		return nil, fmt.Errorf("%w: asked for", errCouldNotEnter)
	}
	p, err := parseJoin(payload)
	if err != nil {
		return nil, err
	}
	out, err := d.join(now, p, h.firmware, &h.group)
	if err != nil {
		return nil, err
	}
	d.params = p
	if (out.newToGroup || out.success) && now.Sub(h.lastLook) >= h.cfg.ScheduleEvery {
		// The orchestrator looks when a device is added to the group or has
		// updated, too early to find it online, and then not again for a while.
		h.lastLook = now
	}
	if out.success {
		h.say(d.id, "runs "+d.meta.Version+" ("+d.validation+")")
	}
	return emptyObject, nil
}

// joined makes the pushes that follow every join. They are broadcasts to the
// device's own topic, so a socket that joined another device's gets none.
func (deviceChannel) joined(s *socket, ch *channel, now time.Time) {
	h, d := s.hub, s.dev
	topic := d.topic()
	if d.params.fwupKeys && len(h.cfg.Keys) > 0 {
		h.broadcast(topic, "fwup_public_keys", map[string]any{"keys": h.cfg.Keys})
	}
	if d.params.archiveKeys && len(h.cfg.Keys) > 0 {
		h.broadcast(topic, "archive_public_keys", map[string]any{"keys": h.cfg.Keys})
	}
	h.offerArchive(now, d)
	if d.api.atLeast(2, 2, 0) {
		h.broadcast(topic, "extensions:get", emptyObject)
	}
	h.trigger(now)
	if code := h.group.ConnectingCode; code != "" && d.grouped && d.api.atLeast(2, 1, 0) {
		s.push(ch, nil, "scripts/run", marshal(map[string]string{"ref": "connecting_code", "text": code}))
	}
}

// offerArchive broadcasts the archive of the release.
func (h *Hub) offerArchive(now time.Time, d *device) {
	if a := h.group.archive; a != nil && d.grouped && d.api.atLeast(2, 0, 0) && d.updatesEnabled && !now.Before(d.blockedUntil) {
		h.broadcast(d.topic(), "archive", a.payload(h.webURL))
	}
}

func (deviceChannel) receive(s *socket, _ *channel, now time.Time, f Frame) crash {
	d := s.dev
	switch f.Event {
	case "status_update":
		s.hub.say(d.id, "status "+string(f.Payload))
		return d.status(now, f.Payload, &s.hub.group)
	case "fwup_progress", "update_progress":
		s.hub.say(d.id, "progress "+string(f.Payload))
		return d.progress(now, f.Payload)
	case "firmware_validated":
		s.hub.say(d.id, "firmware validated")
		return d.validated()
	case "report_network_interface":
		d.report(f.Payload)
	case "connection_types":
		p, _ := decode(f.Payload).(map[string]any)
		d.connectionTypes = marshal(p["values"])
	case "scripts/run":
		d.scriptDone(f.Payload)
	}
	return "" // anything else is ignored
}
