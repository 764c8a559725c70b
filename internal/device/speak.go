package device

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// outboxSize is how many publishes of QoS 1 may wait for PUBACK; beyond it the
// oldest is forgotten and counted.
const outboxSize = 16

// An outbox holds the publishes of QoS 1 that are not acknowledged.
type outbox struct {
	last    uint16
	waiting []outgoing
}

type outgoing struct {
	id     uint16
	name   string // below up/
	packet []byte
}

// id is a packet identifier that no waiting publish uses [MQTT-2.3.1-2].
func (o *outbox) id() uint16 {
	for {
		o.last++
		if o.last != 0 && !slices.ContainsFunc(o.waiting, func(w outgoing) bool { return w.id == o.last }) {
			return o.last
		}
	}
}

// add reports whether the oldest had to go.
func (o *outbox) add(w outgoing) (full bool) {
	if full = len(o.waiting) == outboxSize; full {
		o.waiting = slices.Delete(o.waiting, 0, 1)
	}
	o.waiting = append(o.waiting, w)
	return full
}

// acknowledge returns the name published under id, or "".
func (o *outbox) acknowledge(id uint16) string {
	i := slices.IndexFunc(o.waiting, func(w outgoing) bool { return w.id == id })
	if i < 0 {
		return ""
	}
	name := o.waiting[i].name
	o.waiting = slices.Delete(o.waiting, i, i+1)
	return name
}

// keep forgets all publishes but those of the given names.
func (o *outbox) keep(names ...string) {
	o.waiting = slices.DeleteFunc(o.waiting, func(w outgoing) bool { return !slices.Contains(names, w.name) })
}

// publish speaks below up/. QoS 0 is lost without a connection; QoS 1 waits
// for one, as long as the outbox keeps it. What exceeds the packet is lost.
func (b *boot) publish(name string, qos byte, payload string) {
	retain := b.d.has(FaultRetained)
	if qos == 0 {
		b.write(publishPacket(b.d.topics.up+name, 0, retain, []byte(payload)))
		return
	}
	id := b.outbox.id()
	packet := publishPacket(b.d.topics.up+name, id, retain, []byte(payload))
	if len(packet) > b.d.cfg.Packet {
		b.d.count(func(c *Counts) { c.Lost++ })
		return
	}
	if b.outbox.add(outgoing{id, name, packet}) {
		b.d.count(func(c *Counts) { c.Lost++ })
	}
	if b.asked == 0 { // not before SUBACK: hello comes first
		b.write(packet)
	}
}

// form chooses between a payload's short and JSON form.
func (d *Device) form(short, long string) string {
	if d.cfg.ShortHello {
		return short
	}
	return long
}

// hello says what runs, and again what the gateway has not acknowledged.
func (b *boot) hello() {
	d := b.d
	if d.cfg.Online {
		b.write(publishPacket(d.topics.up+"online", b.outbox.id(), true, []byte("1")))
	}
	// The rest is of the connection before, or about to be said again.
	b.outbox.keep("status", "validated", "rebooting")
	unsent := slices.Clone(b.outbox.waiting)
	if d.has(FaultNeverHello) {
		d.emit(Misbehaved{FaultNeverHello, "subscribed and silent"})
		b.failures = 0
	} else {
		b.publish("hello", 1, d.helloPayload())
		d.count(func(c *Counts) { c.Hellos++ })
		d.emit(HelloSent{d.flash.firmware})
	}
	if d.cfg.ShortHello && d.cfg.Interface != "" {
		b.publish("interface", 1, d.cfg.Interface)
	}
	for _, w := range unsent {
		b.write(w.packet)
	}
}

// helloPayload is the fullest hello that fits into a packet.
func (d *Device) helloPayload() string {
	f := d.flash.firmware
	if d.cfg.ShortHello {
		return f.Version
	}
	type brief struct {
		V         int    `json:"v"`
		Version   string `json:"version"`
		UUID      string `json:"uuid,omitempty"`
		SHA256    string `json:"sha256,omitempty"`
		Validated bool   `json:"validated"`
		Reverted  bool   `json:"reverted"`
		Packet    int    `json:"packet"`
	}
	full := struct {
		brief
		Product      string `json:"product,omitempty"`
		Platform     string `json:"platform,omitempty"`
		Architecture string `json:"architecture,omitempty"`
		Interface    string `json:"interface,omitempty"`
	}{
		brief{1, f.Version, f.UUID, "", d.flash.validated, d.flash.reverted, d.cfg.Packet},
		f.Product, f.Platform, f.Architecture, d.cfg.Interface,
	}
	if f.UUID == "" {
		full.SHA256 = f.SHA256 // what identifies the image when no uuid does
	}
	for _, v := range []any{full, full.brief} {
		b, err := json.Marshal(v)
		if err == nil && len(publishPacket(d.topics.up+"hello", 1, false, b)) <= d.cfg.Packet {
			return string(b)
		}
	}
	return f.Version
}

// status shortens the reason to what certainly fits.
func (b *boot) status(word, reason string, delay int) {
	const about = 80 // bytes of the rest of the packet, below the topic
	d := b.d
	if room := (d.cfg.Packet - len(d.topics.up) - about) / 6; len(reason) > room { // \u00ff takes six
		reason = strings.ToValidUTF8(reason[:max(room, 0)], "")
	}
	if d.cfg.ShortHello {
		s := word
		if delay > 0 {
			s += " " + strconv.Itoa(delay)
		}
		if reason != "" {
			s += " " + reason
		}
		b.publish("status", 1, s)
		return
	}
	s, err := json.Marshal(struct {
		Status string `json:"status"`
		Reason string `json:"reason,omitempty"`
		Delay  int    `json:"delay_for,omitempty"` // ms
	}{word, reason, delay})
	if err == nil { // strings and an int always encode
		b.publish("status", 1, string(s))
	}
}

func (b *boot) progress(percent int) {
	b.d.emit(Progress{percent})
	if b.d.has(FaultFloatProgress) {
		b.badProgress()
		return
	}
	b.publish("progress", 0, b.d.form(strconv.Itoa(percent), fmt.Sprintf(`{"value":%d,"stage":"downloading"}`, percent)))
}
