package hubtest

import (
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// outboxLimit is how many frames may wait for a peer that does not read; one
// more and the connection is cut.
const outboxLimit = 1024

type outgoing struct {
	kind int
	data []byte
	code int // of a close frame
	due  time.Time
}

// An outbox holds what a socket has still to write, in order.
type outbox struct {
	wake chan struct{} // holds one signal for the writer

	mu     sync.Mutex // guards everything below
	frames []outgoing
	delay  time.Duration // of everything added from now on
	done   bool          // the writer ends when frames is empty
}

func newOutbox() *outbox { return &outbox{wake: make(chan struct{}, 1)} }

// add reports whether there was room.
func (o *outbox) add(f outgoing) bool {
	o.mu.Lock()
	ok := len(o.frames) < outboxLimit && !o.done
	if ok {
		f.due = time.Now().Add(o.delay)
		o.frames = append(o.frames, f)
	}
	o.mu.Unlock()
	o.signal()
	return ok
}

func (o *outbox) setDelay(d time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.delay = d
}

// finish lets the writer end after what is waiting, and a close frame if code
// is not 0.
func (o *outbox) finish(code int) {
	if code != 0 {
		o.add(outgoing{kind: websocket.CloseMessage, code: code})
	}
	o.mu.Lock()
	o.done = true
	o.mu.Unlock()
	o.signal()
}

// drop forgets what is waiting; the writer ends.
func (o *outbox) drop() {
	o.mu.Lock()
	o.frames, o.done = nil, true
	o.mu.Unlock()
	o.signal()
}

// signal never blocks, so it may be called under Hub.mu.
func (o *outbox) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// next takes out the first frame if it is due. Otherwise it says how long to
// wait, or that there will be nothing more.
func (o *outbox) next(now time.Time) (f outgoing, ok bool, wait time.Duration, end bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.frames) == 0 {
		return f, false, time.Hour, o.done
	}
	if wait := o.frames[0].due.Sub(now); wait > 0 {
		return f, false, wait, false
	}
	f = o.frames[0]
	o.frames = o.frames[1:]
	return f, true, 0, false
}

// write is the socket's writer; it ends with the outbox or the connection.
func (s *socket) write() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		f, ok, wait, end := s.out.next(time.Now())
		switch {
		case end:
			return
		case !ok:
			timer.Reset(wait)
			select {
			case <-s.out.wake:
			case <-timer.C:
			}
			continue
		}
		deadline := time.Now().Add(writeTimeout)
		var err error
		switch f.kind {
		case websocket.TextMessage:
			s.ws.SetWriteDeadline(deadline)
			err = s.ws.WriteMessage(f.kind, f.data)
		case websocket.CloseMessage:
			err = s.ws.WriteControl(f.kind, websocket.FormatCloseMessage(f.code, ""), deadline)
			timer.Reset(closeTimeout)
			select {
			case <-s.fin: // the peer has answered, or had begun
			case <-timer.C:
				s.cut()
			}
		default:
			err = s.ws.WriteControl(f.kind, f.data, deadline)
		}
		if err != nil {
			s.cut()
			return
		}
	}
}
