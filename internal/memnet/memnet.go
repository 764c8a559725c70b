// Package memnet is an in-memory network for tests that run inside a
// testing/synctest bubble, with the faults a real network has: a peer that
// stops reading, one that vanishes without a word, and a reset.
//
// Its connections are buffered as TCP's are, because a TLS server that sends
// session tickets deadlocks over the unbuffered [net.Pipe]. It must not know
// what travels over it, and nothing but tests may use it.
package memnet

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// backlog is how many dialed connections may wait for Accept; a further Dial
// waits until one of them is accepted.
const backlog = 128

// ports numbers the ends of all connections, so that no two look alike.
var ports atomic.Uint32

func newAddr() *net.TCPAddr {
	const first, last = 1024, 65535
	return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(first + (ports.Add(1)-1)%(last-first+1))}
}

// A Listener accepts the connections its Dial makes.
type Listener struct {
	addr  *net.TCPAddr
	queue chan *conn
	done  chan struct{}
	once  sync.Once

	mu    sync.Mutex
	links map[*link]struct{} // mu guards; the connections that one end at least has not closed
}

var _ net.Listener = (*Listener)(nil)

// Listen returns a Listener with an address of its own.
func Listen() *Listener {
	return &Listener{
		addr:  newAddr(),
		queue: make(chan *conn, backlog),
		done:  make(chan struct{}),
		links: map[*link]struct{}{},
	}
}

// Accept returns the next dialed connection, or an error wrapping
// [net.ErrClosed] once the Listener is closed.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, l.fail("accept", net.ErrClosed)
	default:
	}
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.done:
		return nil, l.fail("accept", net.ErrClosed)
	}
}

// Close ends Accept and Dial. Connections already accepted live on, as with
// TCP; those still waiting for Accept are reset.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.done) })
	l.refuse()
	return nil
}

// refuse resets what still waits for Accept.
func (l *Listener) refuse() {
	for {
		select {
		case c := <-l.queue:
			c.link.reset()
		default:
			return
		}
	}
}

// Addr returns a *net.TCPAddr on 127.0.0.1 that nothing listens on.
func (l *Listener) Addr() net.Addr { return l.addr }

// Dial has the signature of [net.Dialer.DialContext] and always reaches this
// Listener, whatever the address. Once the Listener is closed the error wraps
// [syscall.ECONNREFUSED].
func (l *Listener) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, l.fail("dial", err)
	}
	select {
	case <-l.done:
		return nil, l.fail("dial", syscall.ECONNREFUSED)
	default:
	}
	k := newLink(l)
	l.add(k)
	select {
	case l.queue <- k.server:
	case <-l.done:
		l.remove(k)
		return nil, l.fail("dial", syscall.ECONNREFUSED)
	case <-ctx.Done():
		l.remove(k)
		return nil, l.fail("dial", ctx.Err())
	}
	select {
	case <-l.done:
		l.refuse() // closed meanwhile: nobody will accept it
	default:
	}
	return k.client, nil
}

// Blackhole makes both ends of every connection made so far vanish for each
// other, as when a cable is cut: nothing that is written arrives, no Close is
// seen, and there is no error. Writes succeed until the buffer is full and
// then wait for their deadline. Later connections are not affected.
func (l *Listener) Blackhole() {
	for _, k := range l.all() {
		k.up.blackhole()
		k.down.blackhole()
	}
}

// Drop resets every connection made so far, also one in a black hole: reads
// and writes of both ends fail with [syscall.ECONNRESET], at once.
func (l *Listener) Drop() {
	for _, k := range l.all() {
		k.reset()
	}
}

func (l *Listener) add(k *link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.links[k] = struct{}{}
}

func (l *Listener) remove(k *link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.links, k)
}

func (l *Listener) all() []*link {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]*link, 0, len(l.links))
	for k := range l.links {
		all = append(all, k)
	}
	return all
}

func (l *Listener) fail(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Addr: l.addr, Err: err}
}
