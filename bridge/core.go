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

	now time.Time // set by the Session before every call

	memory

	// The device.
	present  bool // the Bus sees it
	greeted  bool // it has said hello since the Session began
	client   mqtt.Client
	packet   int       // largest packet it takes, bytes; 0: not said
	leaveAt  time.Time // absent, and gone for NervesHub from then on; zero while present
	held     []held
	rebootAt time.Time // when it was told to reboot; zero: it was not, or is back
	back     bool      // from a reboot, and about to say hello

	// NervesHub.
	sock     *phoenix.Socket // nil while the link is down
	phase    time.Duration   // of the heartbeat
	beat     time.Duration   // heartbeat interval
	joined   bool            // the device is joined, as far as it is told
	joinedAt time.Time
	answerBy time.Time // the join must be answered by then; zero: none is open
	rejoinAt time.Time // the crashed channel is joined anew then; zero: it is not
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
	ref         int64     // of its last command
	handed      image     // the last image it was offered
	update      *update   // the current offer; nil when there is none
	newlyValid  bool      // it validated its firmware, and NervesHub was not told
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
	if c.greeted && c.update != nil && !c.update.word.terminal() {
		c.publishUpdate() // it is not retained, and may have come while the device was away
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

// ready reports whether the channel takes events: it is joined, and no newer
// join is on its way.
func (c *core) ready() bool { return c.sock != nil && c.sock.Joined(channel) }

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
// nothing. A device that is away is told after its next hello.
func (c *core) publishUpdate() {
	if !c.present {
		return
	}
	var p []byte
	if u := c.update; u != nil && !u.word.terminal() {
		p = u.payload
	}
	if limit := c.packetLimit(); limit > 0 && len(p)+packetOverhead+len(c.device) > limit {
		c.refuse(downUpdate, &refusal{codePacketTooSmall, fmt.Sprintf("the update needs a packet of %d bytes", len(p)+packetOverhead+len(c.device))})
		return
	}
	c.publish(downUpdate, p, false)
}

// packetOverhead is what a PUBLISH needs beside payload and device: fixed
// header, packet id, an MQTT 5 expiry, and the topic with a prefix of ordinary
// length.
const packetOverhead = 40

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
