package bridge

import (
	"slices"
	"time"
)

// What the device says, row by row of the contract.

// joinsApart is how soon one join may follow another, however often a device
// changes its mind.
const joinsApart = time.Second

// hello handles what a device says after every connect.
func (c *core) hello(p []byte) *refusal {
	h, no := parseHello(p)
	if no != nil {
		return no
	}
	m, no := h.resolve(c.known, c.runs, c.class)
	if no != nil && no.code != codeConflict {
		return no
	}
	c.packet = h.Packet
	c.settle(m)
	again := c.isBack() || !m.same(c.runs)
	c.runs, c.greeted = m, true
	c.remember(image{m.UUID, m.Version, m.Product, m.Platform, m.Architecture, h.SHA256})
	if c.sock != nil && again {
		if next := c.askedAt.Add(joinsApart); next.After(c.now) {
			c.rejoinAt = next
		} else {
			c.join()
		}
	}
	if h.Interface != "" {
		if bad := c.iface([]byte(h.Interface)); bad != nil {
			no = bad
		}
	}
	c.publishUpdate()
	return no
}

// waits reports whether what the device says now has to wait, for half a second
// at most: a hello must not overtake what was reported about an update that
// NervesHub cannot hear about yet.
func (c *core) waits(name string) bool {
	return name == "hello" && c.ready() && c.update.running(c.now) && c.now.Before(c.update.quietTill)
}

// maxKnown is how many images are remembered of a device: what it runs, what it
// ran before, and two it was offered.
const maxKnown = 4

// remember keeps an image, so that a short hello can name it.
func (c *core) remember(i image) {
	c.known = slices.DeleteFunc(c.known, func(o image) bool {
		if o.UUID == i.UUID {
			i.SHA256 = first(i.SHA256, o.SHA256)
		}
		return o.UUID == i.UUID
	})
	c.known = append([]image{i}, c.known[:min(len(c.known), maxKnown-1)]...)
}

// isBack reports, once, whether this hello ends a reboot. Where presence cannot
// be seen, a hello some time after the command does.
func (c *core) isBack() bool {
	back := c.parting || c.back || !c.rebootAt.IsZero() && c.now.Sub(c.rebootAt) >= rebootTakes
	if back {
		c.parting, c.back, c.rebootAt = false, false, time.Time{}
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
		if u != nil && u.image.UUID != m.UUID && before.UUID != "" {
			c.note("runs %s %s, which is not the update to %s", m.Version, m.UUID, u.image.UUID)
		}
		c.newlyValid, c.validTold, c.update, c.askAt = false, false, nil, time.Time{}
	case u == nil || u.over():
	case m.Reverted && u.word != none, c.parting && u.word == completed:
		u.word, u.reason = failed, "reverted: the device is back on "+m.Version
	default:
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
	c.runs.Validated, c.newlyValid = &yes, !c.validTold
	return nil
}

// rebooting says the device is about to. When it is back it joins anew, as any
// device would.
func (c *core) rebooting([]byte) *refusal {
	c.parting = true
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
	if no != nil {
		return no
	}
	if c.net == nil || c.net.Name != i.Name || !slices.Equal(c.net.Types, i.Types) {
		c.net = &i
		c.pushInterface()
	}
	return nil
}
