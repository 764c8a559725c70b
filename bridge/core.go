package bridge

import (
	"fmt"
	"time"

	"ganglion/mqtt"
	"ganglion/phoenix"
)

// core is everything the gateway knows about one device, and every decision it
// takes for it. It has no goroutine, lock, channel or clock: a Session calls it
// with what happened and when, and then carries out what it left in hub and dev.
type core struct {
	device string
	class  Class
	prefix int // length of the topic prefix, bytes

	now time.Time // set by the Session before every call

	memory

	// The device.
	present  bool // the Bus sees it
	greeted  bool // it has said hello since the Session began
	client   mqtt.Client
	packet   int       // largest packet it takes, bytes; 0: not said
	leaveAt  time.Time // absent, and gone for NervesHub from then on; zero while present
	unheard  bool      // an update was offered while it was absent
	rebootAt time.Time // when it was told to reboot; zero: it was not, or is back
	parting  bool      // it said that it reboots, and has not said hello since
	back     bool      // it has connected after a reboot command, and not said hello since

	// NervesHub.
	sock     *phoenix.Socket // nil while the link is down
	phase    time.Duration   // of the heartbeat
	beat     time.Duration   // heartbeat interval
	joined   bool            // the device is joined, as far as it is told
	joinedAt time.Time
	askedAt  time.Time // when the last join was sent
	answerBy time.Time // it must be answered by then; zero: it is
	letGo    bool      // it replaces a living channel, and deletes the row of an update
	void     bool      // an update crossed it, whose row is gone: join once more
	voids    int       // how often in a row
	rejoinAt time.Time // the channel is joined anew then; zero: it is not
	crashes  int       // of the channel, since it was last stable

	// For the Session to carry out after each call.
	hub   []phoenix.Message // to send, in order
	dev   []mqtt.Message    // to publish, in order
	tally []count           // to add to the Fleet's counters
	notes []string          // for the log
}

// A count is one more of something.
type count struct{ metric, label string }

// memory is what the gateway keeps of a device that has left.
type memory struct {
	runs        metadata  // what it said last that it runs; no uuid: nothing yet
	net         *iface    // how it reaches the network
	held        []held    // commands for when it is back
	ref         int64     // of its last command
	known       []image   // what it was offered or said it runs, newest first; at most maxKnown
	update      *update   // the current offer; nil when there is none
	newlyValid  bool      // it validated its firmware, and NervesHub was not told
	validTold   bool      // NervesHub was told so about what it runs
	askAt       time.Time // a reschedule is over then, and a join brings the update; zero: none is
	correctedAt time.Time // when a join last set right what NervesHub thinks it runs
}

func (c *core) drop(policy string) { c.count(dropped, policy) }

func (c *core) count(metric, label string) { c.tally = append(c.tally, count{metric, label}) }

func (c *core) note(format string, args ...any) {
	c.notes = append(c.notes, fmt.Sprintf(format, args...))
}

// online says the Bus sees the device, after a connect or a reconnect.
func (c *core) online(client mqtt.Client) {
	c.present, c.client, c.leaveAt = true, client, time.Time{}
	c.back = c.back || !c.rebootAt.IsZero()
	c.publishLink()
	c.release()
	if c.unheard {
		c.publishUpdate()
	}
}

// offline says the Bus does not see it any more. NervesHub is not told before
// the linger is over: a flapping radio is not a flapping device.
func (c *core) offline() {
	if c.present {
		c.present, c.leaveAt = false, c.now.Add(c.class.Linger)
	}
}

// over reports whether the device has been away for so long that the gateway
// lets it go.
func (c *core) over() bool { return due(c.leaveAt, c.now) }

// wantsLink reports whether there is something to join with. A socket without
// a joined channel would only attract updates nobody receives.
func (c *core) wantsLink() bool { return c.greeted }

// ready reports whether the channel takes events: it is joined with what is true
// now, and no newer join is due or on its way.
func (c *core) ready() bool {
	return c.sock != nil && c.rejoinAt.IsZero() && c.sock.Joined(channel)
}

// received handles what the device published below up/.
func (c *core) received(name string, payload []byte) {
	if !c.present {
		c.online(c.client) // a publish proves presence
	}
	r := upRowFor(name)
	var no *refusal
	switch {
	case r == nil:
		c.count(fromDevice, "unknown")
		no = &refusal{codeUnknownName, "there is no such topic below up/"}
	case len(payload) > r.limit:
		c.count(fromDevice, r.name)
		no = &refusal{codeTooLarge, fmt.Sprintf("%d bytes; at most %d", len(payload), r.limit)}
	default:
		c.count(fromDevice, r.name)
		no = r.take(c, payload)
	}
	c.refuse(name, no)
	c.flush()
}

// refuse tells the device why something was not taken. A nil refusal is none.
func (c *core) refuse(name string, no *refusal) {
	if no == nil {
		return
	}
	c.count(refusedUp, string(no.code))
	c.publish(downError, encode(map[string]string{"on": clean(name), "code": string(no.code), "reason": no.reason}), false)
}

func (c *core) publishLink() {
	state := "down"
	if c.joined {
		state = "up"
	}
	c.publish(downLink, []byte(state), true)
}

// publishUpdate tells the device what there is to install: NervesHub's own
// payload, never retained, because it holds a signed URL; empty when there is
// nothing. It is good as long as NervesHub waits for it.
func (c *core) publishUpdate() {
	if c.unheard = !c.present; c.unheard {
		return
	}
	m := mqtt.Message{Device: c.device, Name: downUpdate}
	if u := c.update; u.onOffer(c.now) {
		m.Payload, m.Expires = u.payload, u.rowAt.Add(rowLife)
	}
	need := len(m.Payload) + packetOverhead + c.prefix + len(c.device)
	if limit := c.packetLimit(); limit > 0 && need > limit {
		c.refuse(downUpdate, &refusal{codePacketTooSmall, fmt.Sprintf("the update needs a packet of %d bytes", need)})
		return
	}
	c.count(toDevice, downUpdate)
	c.dev = append(c.dev, m)
}

// packetOverhead is what a PUBLISH of the update needs beside its payload and
// the names of prefix and device: fixed header 5, topic length 2, packet id 2, an
// MQTT 5 message expiry 6, and the levels of the topic (MQTT 5 §3.3).
const packetOverhead = 15 + len("//down/"+downUpdate)

// packetLimit is the smaller of what the device said in hello and in CONNECT.
func (c *core) packetLimit() int {
	if c.packet == 0 || c.client.MaxPacket > 0 && c.client.MaxPacket < c.packet {
		return c.client.MaxPacket
	}
	return c.packet
}

// tick does what is due at c.now.
func (c *core) tick() error {
	c.expire()
	if c.sock == nil {
		return nil
	}
	if due(c.answerBy, c.now) {
		return errJoinTimeout
	}
	if due(c.rejoinAt, c.now) || due(c.askAt, c.now) && c.ready() {
		c.join() // the end of a reschedule triggers nothing at NervesHub, a join does
	}
	c.flush()
	beat, isDue, err := c.sock.Tick(c.now)
	if isDue {
		c.hub = append(c.hub, beat)
		if c.update != nil {
			c.update.beats()
		}
	}
	return err
}

// deadline is when tick next has something to do; zero means never.
func (c *core) deadline() time.Time {
	at := c.leaveAt
	for _, h := range c.held {
		at = earliest(at, h.expires)
	}
	if c.sock == nil {
		return at
	}
	at = earliest(at, c.answerBy, c.rejoinAt, c.sock.Deadline())
	if c.ready() {
		at = earliest(at, c.askAt)
		if c.update != nil {
			at = earliest(at, c.update.deadline(c.now))
		}
	}
	return at
}

func (c *core) publish(name string, payload []byte, retain bool) {
	c.count(toDevice, name)
	c.dev = append(c.dev, mqtt.Message{Device: c.device, Name: name, Payload: payload, Retain: retain})
}

// due reports whether at is a moment that has come.
func due(at, now time.Time) bool { return !at.IsZero() && !now.Before(at) }

// earliest returns the first moment that is not zero.
func earliest(ts ...time.Time) time.Time {
	var e time.Time
	for _, t := range ts {
		if !t.IsZero() && (e.IsZero() || t.Before(e)) {
			e = t
		}
	}
	return e
}
