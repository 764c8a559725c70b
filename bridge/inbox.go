package bridge

import (
	"sync"

	"ganglion/mqtt"
)

// maxWaiting is how many publishes of one device may wait for its Session,
// beside those that coalesce.
const maxWaiting = 64

// An input is what happened on the device's side.
type input struct {
	kind    inputKind
	client  mqtt.Client // of online
	name    string      // of published and refused
	payload []byte
	why     error // of refused
}

type inputKind int

const (
	published inputKind = iota
	online
	offline
	refused
)

// An inbox holds what a device's Session has not handled yet. The Bus puts, and
// never waits; the Session takes. What does not fit gives way as its row of the
// contract says: newest wins, durable is refused, the rest is dropped.
type inbox struct {
	wake chan struct{} // 1; says that there is something to take

	mu    sync.Mutex // guards queue
	queue []input
}

func newInbox() *inbox { return &inbox{wake: make(chan struct{}, 1)} }

// put adds in. It reports what was lost, as a policy for the counters, and
// whether the Bus may acknowledge.
func (b *inbox) put(in input) (lost string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer func() {
		select {
		case b.wake <- struct{}{}:
		default: // it knows
		}
	}()
	switch in.kind {
	case online, offline:
		if n := len(b.queue); n > 0 && b.queue[n-1].kind != published && b.queue[n-1].kind != refused {
			b.queue[n-1] = in // nothing was said in between
			return "", nil
		}
		b.queue = append(b.queue, in)
		return "", nil
	case published:
		row := upRowFor(in.name)
		if row != nil && row.latest && b.replace(in) {
			return "coalesced", nil
		}
		if b.waiting() >= maxWaiting {
			if row != nil && row.durable {
				return "refused", mqtt.ErrBusy
			}
			return "inbox_full", nil
		}
	case refused:
		if b.waiting() >= maxWaiting {
			return "inbox_full", nil
		}
	}
	b.queue = append(b.queue, in)
	return "", nil
}

// replace puts in in the place of its predecessor, but not across a hello or a
// change of presence: what was said before and after them differs.
func (b *inbox) replace(in input) bool {
	for i := len(b.queue) - 1; i >= 0; i-- {
		o := &b.queue[i]
		switch {
		case o.kind == online, o.kind == offline, o.kind == published && o.name == "hello":
			return false
		case o.kind == published && o.name == in.name:
			o.payload = in.payload
			return true
		}
	}
	return false
}

// waiting counts all but presence, which cannot pile up: two of it never stand
// side by side.
func (b *inbox) waiting() int {
	n := 0
	for i := range b.queue {
		if b.queue[i].kind == published || b.queue[i].kind == refused {
			n++
		}
	}
	return n
}

// take returns everything that is waiting, in order.
func (b *inbox) take() []input {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.queue
	b.queue = nil
	return q
}

func (b *inbox) empty() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.queue) == 0
}
