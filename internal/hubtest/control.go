package hubtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// A Refusal is a way to turn a device away.
type Refusal string

const (
	Refuse401   Refusal = "401"               // empty, as for a wrong credential
	Refuse403   Refusal = "403"               // empty
	Refuse503   Refusal = "503"               // with the header nh-connection-error-reason
	RefuseAlert Refusal = "alert"             // handshake_failure instead of the certificate; for devices with one
	RefuseShed  Refusal = "shed"              // closed before TLS; of one device with a certificate, inside the handshake
	RefuseJoin  Refusal = "join crashed"      // an exception in the device join
	RefuseEntry Refusal = "could not connect" // an error in the device join
)

// Refusals are all of them.
var Refusals = []Refusal{Refuse401, Refuse403, Refuse503, RefuseAlert, RefuseShed, RefuseJoin, RefuseEntry}

// refusalKey names a counter; device "" stands for every device.
type refusalKey struct {
	device string
	how    Refusal
}

// The errors of driving a Hub.
var (
	ErrUnknownDevice   = errors.New("hubtest: no such device")
	ErrUnknownFirmware = errors.New("hubtest: no such firmware")
	ErrInflight        = errors.New("hubtest: an update is inflight")
	ErrScripts         = errors.New("hubtest: device does not take scripts")
)

// AddDevice registers a device, or brings a deleted one back.
func (h *Hub) AddDevice(id string) {
	h.cfg.Auth.AddDevice(id)
	h.mu.Lock()
	defer h.unlock()
	h.device(id).deleted = false
	h.say(id, "registered")
}

// DeleteDevice deletes a device softly: its next dial is refused, the
// identifier stays taken. An open socket stays open and its channel joined, as
// on the real server.
func (h *Hub) DeleteDevice(id string) {
	h.cfg.Auth.DeleteDevice(id)
	h.mu.Lock()
	defer h.unlock()
	h.device(id).deleted = true
	h.say(id, "deleted")
}

// MoveDevice puts a device into another product ("" is the hub's own), where
// there is no deployment group. Its socket is closed with 1001; its certificate
// follows it, a product secret does not.
func (h *Hub) MoveDevice(id, product string) error {
	h.cfg.Auth.MoveDevice(id, product)
	return h.on(id, func(d *device) error {
		d.product, d.grouped = product, false
		if d.socket != nil {
			d.socket.close(websocket.CloseGoingAway)
		}
		h.say(id, "moved to another product")
		return nil
	})
}

// AddFirmware uploads a firmware to the product. Size and checksums are those
// of the image unless given.
func (h *Hub) AddFirmware(f Firmware) {
	f.complete()
	h.mu.Lock()
	defer h.unlock()
	h.firmware[f.UUID] = &f
}

// SetRelease makes a new release of the deployment group, without an archive.
// Eligible devices are offered it when the orchestrator looks next.
func (h *Hub) SetRelease(uuid string) error {
	h.mu.Lock()
	defer h.unlock()
	f := h.firmware[uuid]
	if f == nil {
		return fmt.Errorf("%w: %s", ErrUnknownFirmware, uuid)
	}
	h.group.release, h.group.platform, h.group.architecture = uuid, f.Platform, f.Architecture
	h.group.archive = nil
	for _, d := range h.devices {
		if !d.grouped {
			d.regroup(&h.group) // a version it cannot compare keeps a device out
		}
	}
	h.trigger(time.Now())
	return nil
}

// SetArchive makes a release of the same firmware with an archive, and pushes
// it to the devices that are online.
func (h *Hub) SetArchive(a Archive) {
	h.mu.Lock()
	defer h.unlock()
	h.archives[a.UUID] = &a
	h.group.archive = &a
	now := time.Now()
	for _, d := range h.devices {
		h.offerArchive(now, d)
	}
	h.trigger(now)
}

// SetConnectingCode sets the code a device of the group runs after every join.
func (h *Hub) SetConnectingCode(text string) {
	h.mu.Lock()
	defer h.unlock()
	h.group.ConnectingCode = text
}

// SetExtension turns an extension of the product on or off. What a socket may
// attach was settled when it connected; it is told nevertheless, if it attached
// anything at all.
func (h *Hub) SetExtension(key string, on bool) {
	h.mu.Lock()
	defer h.unlock()
	h.extensions[key] = on
	event := "detach"
	if on {
		event = "attach"
	}
	payload := marshal(map[string]any{"extensions": []string{key}})
	for s := range h.sockets {
		for _, ch := range s.channels {
			if !ch.dead && len(ch.attach) > 0 {
				s.push(ch, nil, event, payload)
			}
		}
	}
}

// on runs f with the device, which must be known.
func (h *Hub) on(id string, f func(*device) error) error {
	h.mu.Lock()
	defer h.unlock()
	d := h.devices[id]
	if d == nil {
		return fmt.Errorf("%w: %s", ErrUnknownDevice, id)
	}
	h.touched[id] = struct{}{}
	return f(d)
}

// PushUpdate is an operator's manual push: it disables automatic updates of
// the device, and fails with ErrInflight while an update is inflight.
func (h *Hub) PushUpdate(id, uuid string) error {
	return h.on(id, func(d *device) error {
		f := h.firmware[uuid]
		switch {
		case f == nil:
			return fmt.Errorf("%w: %s", ErrUnknownFirmware, uuid)
		case d.inflight != nil:
			return fmt.Errorf("%w: %s", ErrInflight, id)
		}
		d.updatesEnabled = false
		d.offer(time.Now(), uuid, 0)
		h.say(id, "update to "+f.Version+" pushed by hand")
		h.broadcast(d.topic(), "update", f.updatePayload(h.webURL, 0))
		return nil
	})
}

// SetUpdatesEnabled allows or forbids automatic updates of a device.
func (h *Hub) SetUpdatesEnabled(id string, on bool) error {
	return h.on(id, func(d *device) error {
		d.updatesEnabled = on
		h.trigger(time.Now())
		return nil
	})
}

// ClearPenalty empties the penalty box of a device and forgets its attempts.
// The orchestrator is not told.
func (h *Hub) ClearPenalty(id string) error {
	return h.on(id, func(d *device) error { d.pardon(); return nil })
}

// Reboot and Identify broadcast to the device; nothing tells whether it heard.
func (h *Hub) Reboot(id string) error   { return h.Push(id, "device", "reboot", struct{}{}) }
func (h *Hub) Identify(id string) error { return h.Push(id, "device", "identify", struct{}{}) }

// Push sends any event. On the device topic it is a broadcast, without refs;
// scripts/run and the events of the other topics carry the join_ref.
func (h *Hub) Push(id, topic, event string, payload any) error {
	return h.on(id, func(d *device) error {
		h.say(id, topic+" "+event+" sent")
		switch {
		case topic == "device" && event != "scripts/run":
			h.broadcast(d.topic(), event, payload)
		default:
			h.pushAll(topic+strings.TrimPrefix(d.topic(), "device"), event, payload)
		}
		return nil
	})
}

// scriptWait is how long the server remembers the ref of a script.
const scriptWait = 15 * time.Second

type scriptResult struct{ output, returned string }

// RunScript runs a support script and returns what the operator sees: the
// output and the return value. A device below API 2.1.0 gives ErrScripts.
func (h *Hub) RunScript(ctx context.Context, id, text string) (string, error) {
	ref, answer := fmt.Sprintf("%06x", rand.Uint32()&0xffffff), make(chan scriptResult, 1)
	err := h.on(id, func(d *device) error {
		if !d.api.atLeast(2, 1, 0) {
			return fmt.Errorf("%w: API %s", ErrScripts, d.apiText)
		}
		d.scripts[ref] = answer
		h.pushAll(d.topic(), "scripts/run", map[string]string{"ref": ref, "text": text})
		return nil
	})
	if err != nil {
		return "", err
	}
	defer h.on(id, func(d *device) error { delete(d.scripts, ref); return nil })
	ctx, cancel := context.WithTimeout(ctx, scriptWait)
	defer cancel()
	select {
	case r := <-answer:
		return strings.TrimSpace(r.output + "\n" + r.returned), nil
	case <-ctx.Done():
		return "", fmt.Errorf("hubtest: script on %s: %w", id, ctx.Err())
	}
}

// scriptDone hands a result to the one who waits for it, if any still does.
func (d *device) scriptDone(payload json.RawMessage) {
	p, _ := decode(payload).(map[string]any)
	if answer := d.scripts[str(p, "ref")]; answer != nil {
		select {
		case answer <- scriptResult{str(p, "output"), str(p, "return")}:
		default: // a second answer
		}
	}
}

// Reconnect is an operator's: the socket is closed with 1001.
func (h *Hub) Reconnect(id string) error {
	return h.online(id, func(s *socket) { s.close(websocket.CloseGoingAway) })
}

// Drop cuts the TCP connection without a close frame.
func (h *Hub) Drop(id string) error {
	return h.online(id, func(s *socket) { h.cuts = append(h.cuts, s) })
}

// Vanish leaves the connection half open: the server reads, writes and answers
// nothing any more, and does not know it. A newer connection or Close ends it.
func (h *Hub) Vanish(id string) error {
	return h.online(id, func(s *socket) {
		s.vanished = true
		s.out.drop()
	})
}

// CrashChannel crashes the device channel as an exception of the server's own would.
func (h *Hub) CrashChannel(id string) error {
	return h.online(id, func(s *socket) {
		if ch := s.channels[s.dev.topic()]; ch != nil && !ch.dead {
			s.crash(time.Now(), ch, "asked for")
		}
	})
}

// online runs f with the socket of the device, if there is one.
func (h *Hub) online(id string, f func(*socket)) error {
	return h.on(id, func(d *device) error {
		if d.socket != nil {
			f(d.socket)
		}
		return nil
	})
}

// Refuse has the next n dials, or joins, of a device turned away; id "" means
// those of any device. It replaces an earlier n of the same kind.
func (h *Hub) Refuse(id string, how Refusal, n int) {
	h.mu.Lock()
	defer h.unlock()
	if id == "" && how == RefuseShed {
		h.shed = n
		for _, g := range h.gates {
			g.Shed(n)
		}
		return
	}
	h.refusals[refusalKey{id, how}] = n
}

// take uses up a refusal, if there is one.
func (h *Hub) take(id string, how Refusal) bool {
	for _, key := range []refusalKey{{id, how}, {"", how}} {
		if h.refusals[key] > 0 {
			h.refusals[key]--
			if d := h.devices[id]; d != nil && how != RefuseJoin && how != RefuseEntry {
				d.refused++
			}
			return true
		}
	}
	return false
}

// Delay makes every frame to the device leave that much later; 0 ends it.
func (h *Hub) Delay(id string, by time.Duration) {
	h.mu.Lock()
	defer h.unlock()
	d := h.device(id)
	d.delay = by
	if d.socket != nil {
		d.socket.out.setDelay(by)
	}
}

// drainGrace is how long a node lives on after its last batch was closed.
const drainGrace = 500 * time.Millisecond

// Drain stops the node as a deployment does, and starts it anew: sockets are
// closed with 1012, DrainBatch at once and the next after DrainInterval. Until
// the end, half a second after the last batch, the node still accepts and
// joins, only to close those sockets with 1000. Drain does not wait for it.
func (h *Hub) Drain() {
	h.mu.Lock()
	defer h.unlock()
	if h.draining {
		return
	}
	h.draining = true
	old := slices.SortedFunc(maps.Keys(h.sockets), func(a, b *socket) int {
		return a.born - b.born
	})
	at := time.Now()
	for batch := range slices.Chunk(old, h.cfg.DrainBatch) {
		closeAll := func(time.Time) {
			for _, s := range batch {
				s.close(websocket.CloseServiceRestart)
			}
		}
		h.later(at, closeAll)
		at = at.Add(h.cfg.DrainInterval)
	}
	if len(old) > 0 {
		at = at.Add(-h.cfg.DrainInterval)
	}
	h.later(at.Add(drainGrace), func(time.Time) {
		h.draining = false
		for s := range h.sockets {
			s.close(websocket.CloseNormalClosure)
		}
	})
}

// Device returns what the hub knows of a device.
func (h *Hub) Device(id string) (DeviceState, bool) {
	h.mu.Lock()
	defer h.unlock()
	return h.state(id)
}

// Devices returns all of them, in the order they became known.
func (h *Hub) Devices() []DeviceState {
	h.mu.Lock()
	defer h.unlock()
	var all []DeviceState
	for _, d := range slices.SortedFunc(maps.Values(h.devices), func(a, b *device) int { return a.dbID - b.dbID }) {
		s, _ := h.state(d.id)
		all = append(all, s)
	}
	return all
}
