package hubtest

import "time"

// An agenda holds what the hub has to do later, earliest first. Hub.mu guards
// it; the hub's one timer goroutine works it off.
type agenda struct{ items []appointment }

type appointment struct {
	at time.Time
	do func(now time.Time) // called with Hub.mu held
}

// add keeps appointments of the same time in the order they were made.
func (a *agenda) add(at time.Time, do func(time.Time)) {
	i := len(a.items)
	for i > 0 && a.items[i-1].at.After(at) {
		i--
	}
	a.items = append(a.items, appointment{})
	copy(a.items[i+1:], a.items[i:])
	a.items[i] = appointment{at, do}
}

// due takes out the first appointment that is due.
func (a *agenda) due(now time.Time) (func(time.Time), bool) {
	if len(a.items) == 0 || a.items[0].at.After(now) {
		return nil, false
	}
	do := a.items[0].do
	a.items = a.items[1:]
	return do, true
}

// next says how long to wait for the first appointment.
func (a *agenda) next(now time.Time) time.Duration {
	if len(a.items) == 0 {
		return time.Hour
	}
	return a.items[0].at.Sub(now)
}
