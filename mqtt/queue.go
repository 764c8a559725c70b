package mqtt

import (
	"slices"
	"time"
)

// The bounds of a mailbox.
const (
	maxQueued   = 64 // commands waiting; a further one is refused
	maxRetained = 64 // retained names; a further one is refused
	maxUnacked  = 16 // QoS 1 messages sent and not acknowledged
)

// A letter is one message on its way to one device.
type letter struct {
	topic   string
	payload []byte
	expires time.Time
	qos     byte // at most; a subscription may ask for less

	// state: the letter stands for the retained message of its topic. What
	// that says is looked up when the letter is sent, so the newest wins.
	state  bool
	retain bool // owed to a new subscription, and so sent with RETAIN set (MQTT 5 §3.3.1.3)

	id  uint16 // packet identifier of a QoS 1 letter, once sent
	ids []int  // subscription identifiers it is sent with (MQTT 5 §3.3.4)
}

// A subscription is one filter a device has been granted.
type subscription struct {
	filter      string
	qos         byte
	id          int  // MQTT 5 §3.8.2.1.2; 0: none
	asPublished bool // keep RETAIN as published (MQTT 5 §3.8.3.1)
}

// A mailbox is what the broker keeps for one device: its retained messages,
// and while it is connected its queue, its subscriptions and the window of
// unacknowledged messages. It decides and does nothing; Embedded.mu guards it.
type mailbox struct {
	session *session // the newest connection, or nil
	open    bool     // the Handler has been told Online, and not yet Offline

	retained map[string]letter // by topic
	shared   map[string]letter // the broker's own, the same map in every mailbox
	queue    []letter          // oldest first; at most maxQueued commands and one state letter a topic
	unacked  []letter          // oldest first
	subs     []subscription
	held     bool // a SUBSCRIBE is being answered: its SUBACK goes first
	window   int  // at most so many unacked
	lastID   uint16

	lost *tally
}

// store keeps l as the retained message of its topic, or forgets that one if l
// is empty.
func store(in map[string]letter, l letter) error {
	if len(l.payload) == 0 {
		delete(in, l.topic)
		return nil
	}
	if _, known := in[l.topic]; !known && len(in) >= maxRetained {
		return ErrQueueFull
	}
	in[l.topic] = l
	return nil
}

// push queues l. A state letter waits only for a device that has subscribed to
// it, takes the place of its predecessor, and is never refused.
func (b *mailbox) push(l letter, now time.Time) error {
	if l.state {
		if _, covered := b.cover(l.topic); covered {
			b.pushState(l.topic, l.qos, false)
		}
		return nil
	}
	if b.commands() >= maxQueued {
		b.makeRoom(now)
	}
	if b.commands() >= maxQueued {
		return ErrQueueFull
	}
	b.queue = append(b.queue, l)
	return nil
}

func (b *mailbox) pushState(topic string, qos byte, retain bool) {
	for i := range b.queue {
		if q := &b.queue[i]; q.state && q.topic == topic {
			q.retain = q.retain || retain
			return
		}
	}
	b.queue = append(b.queue, letter{topic: topic, qos: qos, state: true, retain: retain})
}

func (b *mailbox) commands() (n int) {
	for i := range b.queue {
		if !b.queue[i].state {
			n++
		}
	}
	return n
}

// makeRoom drops what has expired, and what a device that has subscribed did
// not subscribe to.
func (b *mailbox) makeRoom(now time.Time) {
	b.queue = slices.DeleteFunc(b.queue, func(l letter) bool {
		if l.state {
			return false
		}
		_, covered := b.cover(l.topic)
		switch {
		case expired(l.expires, now):
			b.lost.add("expired")
		case len(b.subs) > 0 && !covered:
			b.lost.add("unsubscribed")
		default:
			return false
		}
		return true
	})
}

// next takes the oldest letter that may be sent now: its device has subscribed
// to it and, at QoS 1, the window has room. Commands nobody has subscribed to
// yet wait for their SUBSCRIBE.
func (b *mailbox) next(now time.Time) (l letter, ok bool) {
	if b.held {
		return letter{}, false
	}
	for i := 0; i < len(b.queue); {
		l = b.queue[i]
		sub, covered := b.cover(l.topic)
		qos := min(l.qos, sub.qos)
		if covered && qos > 0 && len(b.unacked) >= b.window {
			return letter{}, false
		}
		if !covered && !expired(l.expires, now) {
			i++
			continue
		}
		b.queue = slices.Delete(b.queue, i, i+1)
		if l.state {
			l = b.resolve(l)
		}
		if expired(l.expires, now) {
			b.lost.add("expired")
			continue
		}
		l.qos, l.ids = qos, b.identifiers(l.topic)
		l.retain = l.retain || l.state && sub.asPublished
		if qos > 0 {
			l.id = b.freeID()
			b.unacked = append(b.unacked, l)
		}
		return l, true
	}
	return letter{}, false
}

// resolve fills in what the retained message of a state letter says by now;
// nothing, if it was cleared.
func (b *mailbox) resolve(l letter) letter {
	kept, ok := b.retained[l.topic]
	if !ok {
		kept = b.shared[l.topic]
	}
	l.payload, l.expires = kept.payload, kept.expires
	return l
}

func expired(at, now time.Time) bool { return !at.IsZero() && !now.Before(at) }

// cover is the subscription with the highest QoS among those that match.
func (b *mailbox) cover(topic string) (best subscription, ok bool) {
	for _, s := range b.subs {
		if matches(s.filter, topic) {
			asPublished := best.asPublished || s.asPublished
			if !ok || s.qos > best.qos {
				best = s
			}
			best.asPublished, ok = asPublished, true
		}
	}
	return best, ok
}

func (b *mailbox) identifiers(topic string) (ids []int) {
	for _, s := range b.subs {
		if s.id > 0 && matches(s.filter, topic) {
			ids = append(ids, s.id)
		}
	}
	return ids
}

// freeID is a packet identifier no unacknowledged letter has. They are the
// gateway's own: a device numbers what it publishes as it likes (MQTT 5 §2.2.1).
func (b *mailbox) freeID() uint16 {
	for {
		b.lastID++
		taken := slices.ContainsFunc(b.unacked, func(l letter) bool { return l.id == b.lastID })
		if b.lastID != 0 && !taken {
			return b.lastID
		}
	}
}

// ack ends the letter with packet identifier id; an unknown one is ignored.
func (b *mailbox) ack(id uint16) {
	b.unacked = slices.DeleteFunc(b.unacked, func(l letter) bool { return l.id == id })
}

// subscribe grants s and, if state is set, owes the device the retained
// messages s covers.
func (b *mailbox) subscribe(s subscription, state bool, now time.Time) {
	b.unsubscribe(s.filter)
	b.subs = append(b.subs, s)
	if !state {
		return
	}
	for _, kept := range []map[string]letter{b.retained, b.shared} {
		var topics []string
		for topic, l := range kept {
			switch {
			case expired(l.expires, now):
				delete(kept, topic)
				b.lost.add("expired")
			case matches(s.filter, topic):
				topics = append(topics, topic)
			}
		}
		slices.Sort(topics)
		for _, topic := range topics {
			b.pushState(topic, kept[topic].qos, true)
		}
	}
}

func (b *mailbox) unsubscribe(filter string) {
	b.subs = slices.DeleteFunc(b.subs, func(s subscription) bool { return s.filter == filter })
}

// subscribed reports whether filter is one the device already has.
func (b *mailbox) subscribed(filter string) bool {
	return slices.ContainsFunc(b.subs, func(s subscription) bool { return s.filter == filter })
}

// takeOver readies the mailbox for a new connection of a device that never was
// away: what was not acknowledged is sent again, in order. State is not: the
// new connection gets it when it subscribes.
func (b *mailbox) takeOver() {
	b.queue = slices.DeleteFunc(append(b.unacked, b.queue...), func(l letter) bool { return l.state })
	b.unacked, b.subs, b.held = nil, nil, false
}

// close readies the mailbox for an absence. A command with a time to live waits
// for the device, unless a newer one of its topic does; the rest is lost.
func (b *mailbox) close(now time.Time) {
	var kept []letter
	for _, l := range slices.Backward(append(b.unacked, b.queue...)) {
		newer := slices.ContainsFunc(kept, func(k letter) bool { return k.topic == l.topic })
		switch {
		case l.state:
		case expired(l.expires, now):
			b.lost.add("expired")
		case l.expires.IsZero() || newer:
			b.lost.add("absent")
		default:
			kept = append(kept, l)
		}
	}
	slices.Reverse(kept)
	b.queue, b.unacked, b.subs, b.held = kept, nil, nil, false
}

// idle reports whether the mailbox holds nothing for its absent device.
func (b *mailbox) idle() bool {
	return b.session == nil && len(b.retained) == 0 && len(b.queue) == 0
}
