package bridge

import (
	"encoding/json"
	"slices"
	"time"

	"ganglion/mqtt"
)

const (
	// rebootsApart is how long a reboot that was delivered counts as under way:
	// another one in that time is the same command.
	rebootsApart = time.Minute
	// rebootTakes is how soon a hello after the command can mean that the device
	// has rebooted, when the Bus saw it neither leave nor return.
	rebootTakes = 2 * time.Second
)

// A held command waits for its device.
type held struct {
	name    string
	expires time.Time
}

// command carries an event that tells the device to do something. It is held
// while the device is away, and dropped when it is too old to be meant.
func (c *core) command(r *downRow, _ json.RawMessage) {
	if r.name == downReboot && !c.rebootAt.IsZero() && c.now.Sub(c.rebootAt) < rebootsApart {
		c.drop("coalesced")
		return
	}
	h := held{r.name, c.now.Add(c.class.CommandTTL)}
	if !c.present {
		c.hold(h)
		return
	}
	c.issue(h)
}

// hold keeps a command for later. A newer one of the same name replaces it, so
// there are never more than names.
func (c *core) hold(h held) {
	if i := slices.IndexFunc(c.held, func(o held) bool { return o.name == h.name }); i >= 0 {
		c.held = slices.Delete(c.held, i, i+1)
		c.drop("coalesced")
	}
	c.held = append(c.held, h)
}

// issue publishes a command. ref grows per device, also over a restart of the
// gateway as long as the clock does, so that a device can tell a command it has
// seen from a new one.
func (c *core) issue(h held) {
	c.ref = max(c.ref+1, c.now.Unix())
	if h.name == downReboot {
		c.rebootAt = c.now
	}
	c.dev = append(c.dev, mqtt.Message{Device: c.device, Name: h.name, Expires: h.expires,
		Payload: encode(map[string]any{"ref": c.ref})})
}

// release publishes what was held for a device that is back.
func (c *core) release() {
	waiting := c.held
	c.held = nil
	for _, h := range waiting {
		if c.now.After(h.expires) {
			c.drop("expired")
			continue
		}
		c.issue(h)
	}
}

// expire drops the held commands that are too old.
func (c *core) expire() {
	c.held = slices.DeleteFunc(c.held, func(h held) bool {
		if c.now.Before(h.expires) {
			return false
		}
		c.drop("expired")
		return true
	})
}

// refuseScript answers scripts/run: the caller waits 15 s for a result, and an
// error is one (NervesHub.Scripts.Runner).
func (c *core) refuseScript(_ *downRow, payload json.RawMessage) {
	var p struct {
		Ref json.RawMessage `json:"ref"`
	}
	if json.Unmarshal(payload, &p) != nil || p.Ref == nil {
		return
	}
	c.push("scripts/run", encode(map[string]any{"ref": p.Ref, "result": "error", "return": "",
		"output": "this device runs no scripts"}))
}
