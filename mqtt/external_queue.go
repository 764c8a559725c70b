package mqtt

import (
	"container/list"
	"time"
)

const (
	externalCommands  = 1024    // messages not retained that wait for the broker
	externalPerDevice = 64      // of them for one device, so that none crowds out the rest
	externalStates    = 1 << 15 // topics whose retained message waits
)

// externalItem is a Message on its way to the broker.
type externalItem struct {
	Message
	topic string
	qos   byte // 0 is sent once, 1 until the broker acknowledges it
}

func (it externalItem) expired(now time.Time) bool {
	return !it.Expires.IsZero() && !now.Before(it.Expires)
}

// externalQueue is what waits for the broker, first in first out. Of the
// messages retained on one topic only the newest waits, at its own place.
type externalQueue struct {
	items    *list.List               // of externalItem
	states   map[string]*list.Element // the retained among them, by topic
	perDev   map[string]int           // the others, counted by device
	commands int                      // and together
}

func newExternalQueue() externalQueue {
	return externalQueue{items: list.New(), states: map[string]*list.Element{}, perDev: map[string]int{}}
}

// add puts it last. The error is [ErrQueueFull].
func (q *externalQueue) add(it externalItem) error {
	if it.Retain {
		if old := q.states[it.topic]; old != nil {
			q.remove(old)
		}
		if len(q.states) >= externalStates {
			return ErrQueueFull
		}
	} else if q.commands >= externalCommands || q.perDev[it.Device] >= externalPerDevice {
		return ErrQueueFull
	}
	q.note(it, q.items.PushBack(it))
	return nil
}

// back puts it first, whatever the limits: it was let in once. It gives way to
// a newer one retained on the same topic.
func (q *externalQueue) back(it externalItem) {
	if it.Retain && q.states[it.topic] != nil {
		return
	}
	q.note(it, q.items.PushFront(it))
}

// pop takes the first out.
func (q *externalQueue) pop() (externalItem, bool) {
	el := q.items.Front()
	if el == nil {
		return externalItem{}, false
	}
	return q.remove(el), true
}

// drop takes out what is retained on topic.
func (q *externalQueue) drop(topic string) {
	if el := q.states[topic]; el != nil {
		q.remove(el)
	}
}

// sweep takes out what has expired, and counts it.
func (q *externalQueue) sweep(now time.Time) (expired uint64) {
	for el := q.items.Front(); el != nil; {
		next := el.Next()
		if el.Value.(externalItem).expired(now) {
			q.remove(el)
			expired++
		}
		el = next
	}
	return expired
}

func (q *externalQueue) note(it externalItem, el *list.Element) {
	if it.Retain {
		q.states[it.topic] = el
		return
	}
	q.commands++
	q.perDev[it.Device]++
}

func (q *externalQueue) remove(el *list.Element) externalItem {
	it := q.items.Remove(el).(externalItem)
	if it.Retain {
		delete(q.states, it.topic)
		return it
	}
	q.commands--
	if q.perDev[it.Device]--; q.perDev[it.Device] == 0 {
		delete(q.perDev, it.Device)
	}
	return it
}
