package bridge

import "time"

// What the device says, row by row of the contract.

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
