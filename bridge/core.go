package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"ganglion/mqtt"
	"ganglion/phoenix"
)

// channel is the only topic a device speaks on. A device's bytes never reach a
// topic or an event name.
const channel = "device"

const (
	joinTimeout  = 30 * time.Second // a join without an answer ends the link
	rejoinSoon   = 250 * time.Millisecond
	rejoinLater  = 5 * time.Second // doubling after each further crash
	rejoinMost   = 5 * time.Minute
	stable       = time.Minute // joined for so long, the past is forgotten
	correctEvery = 30 * time.Second
)

// errJoinTimeout ends a link whose join NervesHub did not answer.
var errJoinTimeout = errors.New("bridge: join not answered")

// A joinError is a join NervesHub refused. The socket must go: until it does the
// device counts as connected, and updates are scheduled into the void.
type joinError struct{ reason string }

func (e *joinError) Error() string { return "bridge: join refused: " + e.reason }

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

func (c *core) drop(policy string)         { c.count(dropped, policy) }
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

// hello handles what a device says after every connect.
func (c *core) hello(p []byte) *refusal {
	h, no := parseHello(p)
	if no != nil {
		return no
	}
	m, no := h.resolve(c.handed, c.runs, c.class)
	if no != nil && no.code != codeConflict {
		return no
	}
	c.packet = h.Packet
	if h.Interface != "" {
		if i, bad := parseInterface([]byte(h.Interface)); bad == nil {
			c.net = &i
		}
	}
	c.settle(m)
	again := c.isBack() || !m.same(c.runs)
	c.runs, c.greeted = m, true
	if again && c.sock != nil {
		c.join()
	}
	c.publishUpdate()
	return no
}

// isBack reports, once, whether this hello ends a reboot. Where presence cannot
// be seen, a hello some time after the command does.
func (c *core) isBack() bool {
	back := c.back || !c.rebootAt.IsZero() && c.now.Sub(c.rebootAt) >= rebootTakes
	if back {
		c.back, c.rebootAt = false, time.Time{}
	}
	return back
}

// settle decides what a hello with m means for the update: the new firmware
// runs, the old one came back, or the device merely restarted.
func (c *core) settle(m metadata) {
	before := c.runs
	switch u := c.update; {
	case m.UUID != before.UUID:
		// Whatever it was before, NervesHub ends the update with this join.
		c.newlyValid = false
		if u != nil && u.image.UUID != m.UUID && before.UUID != "" {
			c.note("runs %s %s, which is not the update to %s", m.Version, m.UUID, u.image.UUID)
		}
		c.update = nil
	case u != nil && !u.over() && (u.word == completed || m.Reverted && u.word != none):
		u.word, u.reason = failed, "reverted: the device is back on "+m.Version
	case u != nil:
		u.restarted()
	}
}

// progress handles a percentage.
func (c *core) progress(p []byte) *refusal { return c.reportOf(parseProgress(p)) }

// status handles a status word.
func (c *core) status(p []byte) *refusal { return c.reportOf(parseStatus(p)) }

func (c *core) reportOf(r report, no *refusal) *refusal {
	switch {
	case no != nil:
		return no
	case r.word == none:
		return nil // idle, unknown: said for other servers
	case c.update == nil:
		return &refusal{codeNoUpdate, "there is no update to report on"}
	}
	if r.word == rescheduled && r.delay < 0 {
		r.delay = c.class.Reschedule
	}
	return c.update.report(r)
}

// validated says the running firmware has proved itself.
func (c *core) validated([]byte) *refusal {
	if c.runs.UUID == "" {
		return &refusal{codeIncomplete, "say hello first"}
	}
	yes := true
	c.runs.Validated, c.newlyValid = &yes, true
	return nil
}

// rebooting says the device is about to. When it is back it joins anew, as any
// device would.
func (c *core) rebooting([]byte) *refusal {
	c.back = true
	if c.ready() {
		c.push("rebooting", nil)
	} else {
		c.drop("not_joined")
	}
	return nil
}

// iface handles how the device reaches the network.
func (c *core) iface(p []byte) *refusal {
	i, no := parseInterface(p)
	if no == nil {
		c.net = &i
		c.pushInterface()
	}
	return no
}

// linkUp begins a conversation on a new connection.
func (c *core) linkUp() {
	c.sock = phoenix.NewSocket(c.now, c.beat, c.phase)
	c.join()
}

// linkDown forgets the conversation; what the device said is kept.
func (c *core) linkDown() {
	c.sock, c.answerBy, c.rejoinAt, c.crashes = nil, time.Time{}, time.Time{}, 0
	c.hub = c.hub[:0]
	c.setJoined(false)
}

// join joins the channel, or joins it again with what is true now.
func (c *core) join() {
	downloading := ""
	if c.update.running(c.now) {
		downloading = c.update.image.UUID
	}
	name := ""
	if c.net != nil {
		name = c.net.Name
	}
	c.hub = append(c.hub, c.sock.Join(channel, c.runs.join(downloading, name)))
	c.answerBy, c.rejoinAt = c.now.Add(joinTimeout), time.Time{}
	if due(c.askAt, c.now) {
		c.askAt = time.Time{}
	}
}

// fromHub handles a frame; an error ends the link.
func (c *core) fromHub(m phoenix.Message) error {
	e := c.sock.Receive(m)
	if e.Topic != channel {
		return nil
	}
	switch e.Kind {
	case phoenix.Joined:
		c.count(joins, "ok")
		c.answerBy, c.joinedAt = time.Time{}, c.now
		c.setJoined(true)
		c.pushInterface()
		c.offeredInReply(e.Payload)
	case phoenix.Refused:
		reason := refusalReason(e.Payload)
		return &joinError{reason}
	case phoenix.Crashed, phoenix.Closed:
		c.crashed(e)
	case phoenix.Pushed:
		c.pushed(e)
	}
	c.flush()
	return nil
}

// crashed joins again after the channel died: at once, then ever more slowly.
// The other channels of the socket go on.
func (c *core) crashed(e phoenix.Event) {
	if c.now.Sub(c.joinedAt) >= stable {
		c.crashes = 0
	}
	wait := rejoinSoon
	if c.crashes > 0 {
		wait = min(rejoinLater<<min(c.crashes-1, 10), rejoinMost)
	}
	c.crashes++
	c.count(refusals, "channel_crash")
	c.note("NervesHub ended the channel (%s %s); joining again in %s", e.Event, e.Payload, wait)
	c.rejoinAt, c.answerBy = c.now.Add(wait), time.Time{}
	c.setJoined(false)
}

// pushed handles an event of the channel. Unknown ones are NervesHub's business.
func (c *core) pushed(e phoenix.Event) {
	r := downRowFor(e.Event)
	if r == nil {
		c.count(fromHub, "other")
		return
	}
	c.count(fromHub, r.event)
	r.carry(c, r, e.Payload)
}

// offeredInReply takes an update from a join's reply, where very old servers
// put it.
func (c *core) offeredInReply(p json.RawMessage) {
	var o offer
	if json.Unmarshal(p, &o) == nil && o.Available {
		c.offered(downRowFor(downUpdate), p)
	}
}

// offered handles update.
func (c *core) offered(_ *downRow, p json.RawMessage) {
	var o offer
	if err := json.Unmarshal(p, &o); err != nil || !o.Available || o.Meta.UUID == "" || o.URL == "" {
		c.drop("no_offer") // update_available:false has every other field null
		return
	}
	if o.Meta.UUID == c.runs.UUID {
		c.correct()
		return
	}
	if u := c.update; u != nil && u.image.UUID == o.Meta.UUID && !u.over() {
		u.offeredAgain(p, c.now)
	} else {
		c.update = newUpdate(o, p, c.now)
	}
	c.handed = c.update.image
	c.publishUpdate()
}

// correct answers an update to what already runs: NervesHub holds something old
// about the device, and a join tells it the truth. ignored would block the
// device for a day.
func (c *core) correct() {
	if c.now.Sub(c.correctedAt) < correctEvery || c.sock == nil {
		c.drop("already_running")
		return
	}
	c.correctedAt = c.now
	c.note("NervesHub offers %s, which already runs; joining again to say so", c.runs.UUID)
	c.join()
}

// refusalReason reads why a join was refused: reason or error, whatever the
// kind of failure.
func refusalReason(p json.RawMessage) string {
	var r struct{ Reason, Error string }
	if json.Unmarshal(p, &r) != nil || r.Reason == "" && r.Error == "" {
		return clean(string(p))
	}
	return clean(first(r.Reason, r.Error))
}

// setJoined tells the device whether it is joined, when that changes.
func (c *core) setJoined(joined bool) {
	if c.joined != joined {
		c.joined = joined
		c.publishLink()
	}
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

// pushInterface reports the interface: NervesHub forgets it at every connect.
func (c *core) pushInterface() {
	if c.net == nil || !c.ready() {
		return
	}
	c.push("report_network_interface", encode(map[string]string{"interface": c.net.Name}))
	if len(c.net.Types) > 0 {
		c.push("connection_types", encode(map[string]any{"values": c.net.Types}))
	}
}

// flush sends what is due on a joined channel.
func (c *core) flush() {
	if !c.ready() {
		return
	}
	if c.newlyValid {
		c.newlyValid = false
		c.push("firmware_validated", nil)
	}
	u := c.update
	if u == nil {
		return
	}
	before := u.told
	for _, s := range u.due(c.now) {
		c.push(s.event, s.payload)
	}
	if u.told == rescheduled && before != rescheduled {
		c.askAt = c.now.Add(u.delay + time.Second)
	}
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
	m, due, err := c.sock.Tick(c.now)
	if due {
		c.hub = append(c.hub, m)
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

// push sends an event on the channel. The payload is ours or was rebuilt from
// checked parts.
func (c *core) push(event string, payload json.RawMessage) {
	if m, ok := c.sock.Push(channel, event, payload); ok {
		c.count(toHub, event)
		c.hub = append(c.hub, m)
	}
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
