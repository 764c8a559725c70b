package bridge

import (
	"encoding/json"
	"errors"
	"time"

	"ganglion/phoenix"
)

// The device channel: joins, what NervesHub pushes, and what it is told.

// channel is the only topic a device speaks on. A device's bytes never reach a
// topic or an event name.
const channel = "device"

// oldChannel is what the oldest servers call it when they speak.
const oldChannel = "devices"

// heartbeats is the topic of their answers (Phoenix.Socket).
const heartbeats = "phoenix"

const (
	joinTimeout  = 30 * time.Second // a join without an answer ends the link
	rejoinSoon   = 250 * time.Millisecond
	rejoinLater  = 5 * time.Second // doubling after each further crash
	rejoinMost   = 5 * time.Minute
	stable       = time.Minute // joined for so long, the past is forgotten
	correctEvery = 30 * time.Second
	maxVoids     = 3 // in a row; a server that always answers so is believed
)

// errJoinTimeout ends a link whose join NervesHub did not answer.
var errJoinTimeout = errors.New("bridge: join not answered")

// A joinError is a join NervesHub refused. The socket must go: until it does the
// device counts as connected, and updates are scheduled into the void.
type joinError struct{ reason string }

func (e *joinError) Error() string { return "bridge: join refused: " + e.reason }

// linkUp begins a conversation on a new connection.
func (c *core) linkUp() {
	c.sock = phoenix.NewSocket(c.now, c.beat, c.phase)
	c.join()
}

// linkDown forgets the conversation; what the device said is kept.
func (c *core) linkDown() {
	c.sock, c.answerBy, c.rejoinAt, c.crashes = nil, time.Time{}, time.Time{}, 0
	c.hub = c.hub[:0]
	if c.update != nil {
		c.update.lost(c.now)
	}
	c.setJoined(false)
}

// join joins the channel, or joins it again with what is true now.
func (c *core) join() {
	downloading := ""
	switch u := c.update; {
	case u.running(c.now):
		downloading = u.image.UUID
	case u != nil:
		u.row = false // this join deletes it
	}
	c.letGo, c.void = downloading == "" && c.joined, false
	name := ""
	if c.net != nil {
		name = c.net.Name
	}
	c.hub = append(c.hub, c.sock.Join(channel, c.runs.join(downloading, name)))
	c.answerBy, c.rejoinAt, c.askedAt = c.now.Add(joinTimeout), time.Time{}, c.now
	if due(c.askAt, c.now) {
		c.askAt = time.Time{}
	}
}

// fromHub handles a frame; an error ends the link.
func (c *core) fromHub(m phoenix.Message) error {
	if m.Topic == oldChannel {
		m.Topic = channel
	}
	e := c.sock.Receive(m)
	if e.Topic != channel {
		if c.update != nil && e.Topic == heartbeats {
			c.update.answered()
		}
		return nil
	}
	switch e.Kind {
	case phoenix.Joined:
		c.count(joins, "ok")
		c.answerBy = time.Time{}
		if !c.joined {
			c.joinedAt = c.now
			c.note("joined NervesHub, running %s %s", c.runs.Product, c.runs.Version)
		}
		c.setJoined(true)
		c.pushInterface()
		c.offeredInReply(e.Payload)
		if c.void {
			c.join() // an offer without a status behind it costs nothing
		}
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
	c.note("NervesHub ended the channel (%s %s); joining again in %s", clean(e.Event), clean(string(e.Payload)), wait)
	c.rejoinAt, c.answerBy = c.now.Add(wait), time.Time{}
	if c.update != nil {
		c.update.lost(c.now)
	}
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
	if u := c.update; u != nil && u.image.UUID == o.Meta.UUID && u.goesOn(c.now) {
		u.offeredAgain(p, c.now)
	} else {
		c.update = newUpdate(o, p, c.now)
	}
	c.askAt = time.Time{}
	c.remember(c.update.image)
	if c.letGo && !c.answerBy.IsZero() && c.voids < maxVoids {
		// It was on its way when the join that deletes its row was sent: what
		// the device says about it must not reach NervesHub.
		c.update.row, c.void = false, true
		c.voids++
	} else {
		c.voids = 0
	}
	c.publishUpdate()
}

// correct answers an update to what already runs: NervesHub holds something old
// about the device, and a join tells it the truth. ignored would block the
// device for a day.
func (c *core) correct() {
	if c.now.Sub(c.correctedAt) < correctEvery {
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

// flush sends what is due on a joined channel.
func (c *core) flush() {
	if !c.ready() {
		return
	}
	if c.newlyValid {
		c.newlyValid, c.validTold = false, true
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

// push sends an event on the channel. The payload is ours or was rebuilt from
// checked parts.
func (c *core) push(event string, payload json.RawMessage) {
	if m, ok := c.sock.Push(channel, event, payload); ok {
		c.count(toHub, event)
		c.hub = append(c.hub, m)
	}
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
