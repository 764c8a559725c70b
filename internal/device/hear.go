package device

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

func (b *boot) receive(in inbound) {
	if in.err != nil {
		b.lost(in.err)
		return
	}
	if b.asked == 0 {
		b.clear(alarmAnswer) // whatever it says, the broker is alive
	}
	switch p := in.packet; p.kind {
	case typePublish:
		if p.qos == 1 {
			b.write(pubackPacket(p.id))
		}
		b.heard(p)
	case typePuback:
		b.acknowledged(b.outbox.acknowledge(p.id))
	case typeSuback:
		b.granted(p)
	case typePingresp:
	default: // a second CONNACK
		b.lost(fmt.Errorf("%w: type %d out of place", errMalformed, p.kind))
	}
}

func (b *boot) granted(p packet) {
	if b.asked == 0 || p.id != b.asked {
		b.lost(fmt.Errorf("%w: SUBACK for nothing", errMalformed))
		return
	}
	for _, code := range p.codes {
		if code > 2 { // 0x80, MQTT 3.1.1 §3.9.3
			b.lost(errors.New("the broker refused a subscription"))
			return
		}
	}
	b.asked = 0
	b.clear(alarmAnswer)
	b.d.count(func(c *Counts) { c.Subscribes++ })
	b.d.emit(Subscribed{})
	b.hello()
	if b.d.has(FaultNeverHello) {
		b.settled()
	}
}

// acknowledged hears that the gateway has what was published as name, or as
// something that nobody waits for, then "".
func (b *boot) acknowledged(name string) {
	if b.leaving && len(b.outbox.waiting) == 0 {
		b.down = true
		return
	}
	if name != "hello" {
		return
	}
	b.failures = 0
	b.d.count(func(c *Counts) { c.Online = true })
	b.d.emit(HelloAcknowledged{})
	if !b.d.flash.validated { // it boots, connects and is heard: that is the self-test
		b.d.flash.validated = true
		b.publish("validated", 1, b.d.form("", "{}"))
		b.d.emit(Validated{b.d.flash.firmware.Version})
	}
	b.settled()
}

func (b *boot) heard(p packet) {
	if p.cut {
		b.d.emit(TooLarge{p.topic, p.size})
		return
	}
	name, ok := strings.CutPrefix(p.topic, b.d.topics.down)
	switch {
	case p.topic == b.d.topics.gateway:
		b.gateway(p.payload)
	case !ok: // a broker that sends what was not asked for
	case name == "update":
		b.update(p.payload)
	case name == "link":
		up := string(p.payload) == "up"
		b.d.count(func(c *Counts) { c.Link = up })
		b.d.emit(Link{up})
	case name == "error":
		var e struct{ On, Code, Reason string }
		if err := json.Unmarshal(p.payload, &e); err != nil {
			e.Code, e.Reason = "unreadable", err.Error()
		}
		b.d.count(func(c *Counts) { c.Refused++ })
		b.d.emit(Error{e.On, e.Code, e.Reason})
	default:
		b.command(name, p.payload)
	}
}

func (b *boot) gateway(payload []byte) {
	var g struct {
		State string
		Boot  uint64
	}
	if err := json.Unmarshal(payload, &g); err != nil {
		return
	}
	if g.State != "online" { // then a link of up means nothing
		b.d.count(func(c *Counts) { c.Link = false })
	}
	b.d.emit(Gateway{g.State == "online", g.Boot})
}

// command executes each ref once: MQTT delivers at least once, and so does the
// gateway. Names that the device has no part for are only reported.
func (b *boot) command(name string, payload []byte) {
	var c struct{ Ref uint64 }
	if err := json.Unmarshal(payload, &c); err != nil {
		c.Ref = 0 // a command without a readable ref is a new one
	}
	if name != "reboot" && name != "identify" {
		b.d.emit(CommandReceived{Name: name, Ref: c.Ref})
		return
	}
	repeat := b.d.seen(c.Ref)
	if repeat {
		b.d.count(func(c *Counts) { c.Repeated++ })
	} else {
		b.d.executed(name, c.Ref)
	}
	b.d.emit(CommandReceived{name, c.Ref, repeat})
	switch {
	case repeat:
	case name == "identify":
		b.d.emit(Identified{})
	default:
		b.leave("command")
	}
}
