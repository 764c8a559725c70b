package device

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// A Fault is a way to misbehave. A device may have several.
type Fault string

// The faults, by what the device does:
const (
	FaultDrop          Fault = "drop"           // cuts the connection at random moments, sometimes with a reset
	FaultReboot        Fault = "reboot"         // loses power once within each transfer, and goes on with it
	FaultStall         Fault = "stall"          // after hello reads nothing more, but pings
	FaultFlood         Fault = "flood"          // after hello publishes 500 messages a second
	FaultGarbage       Fault = "garbage"        // malformed payloads on every name, then malformed MQTT
	FaultFloatProgress Fault = "float-progress" // progress that is no integer, or no number
	FaultDoubleFinal   Fault = "double-final"   // fetches, then says failed twice and installs nothing
	FaultNeverHello    Fault = "never-hello"    // connects, subscribes and says nothing
	FaultRevert        Fault = "revert"         // boots the old firmware after an update, and says reverted
	FaultRetained      Fault = "retained"       // publishes everything retained
)

// Faults are all of them.
var Faults = []Fault{FaultDrop, FaultReboot, FaultStall, FaultFlood, FaultGarbage,
	FaultFloatProgress, FaultDoubleFinal, FaultNeverHello, FaultRevert, FaultRetained}

const (
	floodBeat = 20 * time.Millisecond
	floodSize = 10 // messages per beat
	hangup    = 2 * time.Second
)

// armTrouble plans the next random fault of this connection.
func (b *boot) armTrouble() {
	if b.d.has(FaultDrop) || b.d.has(FaultGarbage) {
		b.set(alarmTrouble, b.d.between(0, 2*b.d.cfg.Trouble))
	}
}

func (b *boot) trouble() {
	drop, garbage := b.d.has(FaultDrop), b.d.has(FaultGarbage)
	if drop && garbage {
		drop = b.d.rand.IntN(2) == 0
	}
	switch {
	case drop:
		b.cut()
	case b.dirty:
		b.malformed()
	default:
		b.garbage()
	}
}

// cut ends the connection without DISCONNECT, half of the time with a reset.
func (b *boot) cut() {
	how := "connection closed"
	if tcp, ok := b.conn.net.(*net.TCPConn); ok && b.d.rand.IntN(2) == 0 {
		tcp.SetLinger(0)
		how = "connection reset"
	}
	b.d.emit(Misbehaved{FaultDrop, how})
	b.lost(errors.New("cut"))
}

// settled is called when a connection has got as far as it will: the faults
// that need a healthy start begin.
func (b *boot) settled() {
	if b.d.has(FaultStall) && !b.leaving {
		b.d.emit(Misbehaved{FaultStall, "reads no more"})
		b.stalled = true
		b.clear(alarmAnswer)
	}
	if b.d.has(FaultFlood) {
		b.d.emit(Misbehaved{FaultFlood, fmt.Sprintf("%d messages a second", floodSize*int(time.Second/floodBeat))})
		b.set(alarmFlood, floodBeat)
	}
}

var floodNames = []string{"progress", "log", "status", "health", "hello"}

func (b *boot) flood() {
	for i := range floodSize {
		if b.conn == nil {
			return
		}
		name := floodNames[i%len(floodNames)]
		payload := map[string]string{
			"progress": fmt.Sprint(b.d.rand.IntN(101)), "log": "flood", "status": "downloading",
			"health": `{"temp":41.5}`, "hello": b.d.helloPayload(),
		}[name]
		var id uint16
		if i >= floodSize/2 {
			id = b.outbox.id() // nobody waits for its PUBACK
		}
		b.write(publishPacket(b.d.topics.up+name, id, b.d.has(FaultRetained), []byte(payload)))
	}
	b.set(alarmFlood, floodBeat)
}

var badProgress = []string{"42.5", `"50"`, "NaN", "-3", "250", "1e400", "", "abc", "{}",
	`{"value":42.5}`, `{"value":"50"}`, `{"value":NaN}`, `{"value":null}`, `{"value":1e400}`,
	`{"value":50,"stage":"verifying"}`, `{"value":50,"stage":7}`}

func (b *boot) badProgress() {
	b.d.emit(Misbehaved{FaultFloatProgress, fmt.Sprintf("%d payloads", len(badProgress))})
	for _, p := range badProgress {
		b.publish("progress", 0, p)
	}
}

// upNames are all names of the contract, and some that it does not have.
var upNames = []string{"hello", "progress", "status", "validated", "rebooting", "fw", "interface", "health",
	"geo", "log", "net", "console", "shell", "script", "online", "nonsense", "a/b/c/d/e/f", " ", "$SYS", "\u00fc"}

func badPayloads(limit int) []string {
	return []string{"", "{", "[]", "null", "true", "{}x", "\xff\xfe", "\x00", `{"version":7}`, `{"status":7}`,
		`{"state":{}}`, `{"value":"x"}`, `"unterminated`, `{"v":1e999}`, `{"a":1,"a":2}`,
		strings.Repeat("[", limit), strings.Repeat("x", limit)}
}

// garbage sends every malformed payload to every name.
func (b *boot) garbage() {
	b.d.emit(Misbehaved{FaultGarbage, "malformed payloads on every name"})
	b.dirty = true
	retain := b.d.has(FaultRetained)
	for _, name := range upNames {
		topic := b.d.topics.up + name
		for _, p := range badPayloads(b.d.cfg.Packet - len(topic) - 8) {
			b.write(publishPacket(topic, 0, retain, []byte(p)))
		}
	}
	if b.conn != nil {
		b.armTrouble()
	}
}

// malformedPackets break MQTT 3.1.1, each in its own way.
var malformedPackets = []struct{ name, bytes string }{
	{"reserved type 0", "\x00\x00"},
	{"reserved type 15", "\xf0\x00"},
	{"remaining length of five bytes", "\x30\xff\xff\xff\xff\x7f"},
	{"PUBLISH of QoS 3", "\x36\x07\x00\x03a/b\x00\x01"},
	{"PUBLISH without topic", "\x30\x00"},
	{"topic longer than its packet", "\x30\x04\xff\xffab"},
	{"topic with a wildcard", "\x30\x05\x00\x03a/#"},
	{"topic with NUL", "\x30\x05\x00\x03a\x00b"},
	{"topic that is not UTF-8", "\x30\x05\x00\x03a\xffb"},
	{"SUBSCRIBE with wrong flags", "\x80\x06\x00\x01\x00\x01a\x00"},
	{"SUBSCRIBE without filter", "\x82\x02\x00\x01"},
	{"SUBSCRIBE cut short", "\x82\x05\x00\x01\x00\x09a"},
	{"second CONNECT", "\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01x"},
	{"CONNACK from a client", "\x20\x02\x00\x00"},
	{"PUBLISH of 256 MiB that never comes", "\x30\xff\xff\xff\x7f\x00\x03a/b"},
}

// malformed breaks MQTT itself. The broker is to close the connection; if it
// does not, the device does.
func (b *boot) malformed() {
	p := malformedPackets[b.d.rand.IntN(len(malformedPackets))]
	b.d.emit(Misbehaved{FaultGarbage, "malformed MQTT: " + p.name})
	b.dirty = false
	if err := b.conn.send([]byte(p.bytes)); err != nil {
		b.lost(err)
		return
	}
	b.set(alarmHangup, hangup)
}
