package device

import (
	"cmp"
	"context"
	"errors"
	"math"
	"time"
)

const (
	retryMost   = 30 * time.Second
	answerLimit = 10 * time.Second // for SUBACK and PINGRESP
	leaveLimit  = 2 * time.Second  // for the acknowledgement of rebooting
)

// The moments a boot waits for. One timer serves them all.
type alarm int

const (
	alarmRedial  alarm = iota // dial the broker
	alarmAnswer               // the broker owes SUBACK or PINGRESP until then
	alarmPing                 // say something before the keepalive runs out
	alarmLeave                // reset, acknowledged or not
	alarmTrouble              // the next random fault
	alarmFlood                // the next handful of the flood
	alarmHangup               // close what the broker should have closed
	alarms
)

// A boot is what is in RAM, from one reset to the next. Its only goroutine is
// that of Run, which owns it all.
type boot struct {
	d   *Device
	ctx context.Context
	due [alarms]time.Time // zero: not set

	conn     *conn  // nil while offline
	failures int    // connections in a row that came to nothing
	asked    uint16 // identifier of the SUBSCRIBE that is not answered yet, or 0
	stalled  bool   // fault stall: nothing is read any more
	outbox   outbox

	transfer *transfer // nil: none
	leaving  bool      // said rebooting
	down     bool      // reset now
	dirty    bool      // the fault garbage has sent its payloads and turns to packets
}

func newBoot(ctx context.Context, d *Device) *boot { return &boot{d: d, ctx: ctx} }

// run returns true for a reboot and false when ctx has ended.
func (b *boot) run() bool {
	defer b.off()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	b.set(alarmRedial, 0)
	idle := new(transfer) // its nil channels never deliver
	for !b.down {
		timer.Reset(time.Until(b.next()))
		t := cmp.Or(b.transfer, idle)
		select {
		case <-b.ctx.Done():
			return false
		case in := <-b.inbox():
			b.receive(in)
		case percent := <-t.marks:
			b.mark(percent)
		case f := <-t.breaks:
			b.d.emit(FetchFailed{f.at, f.err})
		case err := <-t.done:
			b.finish(err)
		case <-timer.C:
			b.tick(time.Now())
		}
	}
	return true
}

// off ends the boot: by ctx in good order, otherwise without a word, as a
// reset does. The transfer stops; what it wrote stays.
func (b *boot) off() {
	b.halt()
	polite := b.ctx.Err() != nil && !b.stalled
	if polite && b.d.cfg.Online { // after DISCONNECT the broker forgets the will
		b.write(publishPacket(b.d.topics.up+"online", b.outbox.id(), true, []byte("0")))
	}
	if b.conn != nil {
		b.conn.close(polite)
		b.d.emit(Disconnected{})
	}
}

func (b *boot) inbox() <-chan inbound {
	if b.conn == nil || b.stalled {
		return nil
	}
	return b.conn.in
}

func (b *boot) set(a alarm, in time.Duration) { b.due[a] = time.Now().Add(in) }
func (b *boot) clear(a alarm)                 { b.due[a] = time.Time{} }

// next is the earliest alarm; there is always one, to redial or to ping.
func (b *boot) next() time.Time {
	first := time.Now().Add(time.Hour)
	for _, t := range b.due {
		if !t.IsZero() && t.Before(first) {
			first = t
		}
	}
	return first
}

func (b *boot) tick(now time.Time) {
	act := [alarms]func(){
		alarmRedial:  b.dial,
		alarmAnswer:  func() { b.lost(errors.New("the broker does not answer")) },
		alarmPing:    b.ping,
		alarmLeave:   func() { b.down = true },
		alarmTrouble: b.trouble,
		alarmFlood:   b.flood,
		alarmHangup:  func() { b.lost(errors.New("hung up on a broker that took malformed packets")) },
	}
	for a, t := range b.due {
		// An earlier action may have cleared this one.
		if !t.IsZero() && !t.After(now) && b.due[a] == t {
			b.clear(alarm(a))
			act[a]()
		}
	}
}

func (b *boot) dial() {
	d := b.d
	c, err := connect(b.ctx, d.cfg.Dial, d.cfg.Broker, d.login(), d.cfg.Packet)
	if err != nil {
		b.retry(err)
		return
	}
	b.conn = c
	d.count(func(c *Counts) { c.Connects++ })
	d.emit(Connected{d.cfg.Broker})
	b.set(alarmPing, b.quiet())
	b.armTrouble()
	b.asked = b.outbox.id()
	b.set(alarmAnswer, answerLimit)
	b.write(d.subscription(b.asked))
}

func (d *Device) login() login {
	l := login{id: d.cfg.ID, username: d.cfg.Username, password: d.cfg.Password,
		keepalive: uint16(min(math.Ceil(d.cfg.Keepalive.Seconds()), math.MaxUint16))}
	if d.cfg.Online {
		l.willTopic, l.willPayload = d.topics.up+"online", "0"
	}
	return l
}

func (d *Device) subscription(id uint16) []byte {
	return subscribePacket(id, d.topics.down+"#", d.topics.gateway)
}

// quiet is how long the device may say nothing: less than the keepalive, which
// the broker measures at its own end (MQTT 3.1.1 §3.1.2.10).
func (b *boot) quiet() time.Duration { return b.d.cfg.Keepalive * 3 / 4 }

func (b *boot) ping() {
	if left := b.quiet() - time.Since(b.conn.wrote); left > 0 {
		b.set(alarmPing, left)
		return
	}
	b.set(alarmPing, b.quiet())
	if !b.stalled && b.due[alarmAnswer].IsZero() {
		b.set(alarmAnswer, min(answerLimit, b.d.cfg.Keepalive))
	}
	b.write(pingreqPacket())
}

// write sends a packet if there is a connection, and ends that if it cannot.
func (b *boot) write(packet []byte) {
	if b.conn == nil {
		return
	}
	if err := b.conn.write(packet); err != nil {
		b.lost(err)
	}
}

// lost ends the connection and plans the next.
func (b *boot) lost(err error) {
	if b.conn == nil {
		return
	}
	b.conn.close(false)
	b.conn, b.asked, b.stalled = nil, 0, false
	b.d.count(func(c *Counts) { c.Online, c.Link = false, false })
	for a := range alarms {
		b.clear(a)
	}
	if b.leaving {
		b.down = true
		return
	}
	b.retry(err)
}

// retry plans the next dial: after 1, 2, 4 … 30 s, of which half is by chance.
// Only an acknowledged hello counts as a success.
func (b *boot) retry(err error) {
	if b.ctx.Err() != nil {
		return
	}
	most := min(b.d.cfg.Retry<<min(b.failures, 10), max(retryMost, b.d.cfg.Retry))
	b.failures++
	delay := b.d.between(most/2, most)
	b.set(alarmRedial, delay)
	b.d.emit(Disconnected{err, delay})
}

// leave reboots in good order: the gateway is told and acknowledges first.
func (b *boot) leave(cause string) {
	if b.leaving {
		return
	}
	b.leaving = true
	b.d.emit(Rebooting{cause})
	if b.conn == nil {
		b.down = true
		return
	}
	b.set(alarmLeave, leaveLimit)
	b.publish("rebooting", 1, b.d.form("", "{}"))
}
